-- Who made a rollout, and whether a second person must approve it (JSON). Unknown for those from before.
ALTER TABLE rollouts ADD COLUMN author TEXT NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN approval TEXT NOT NULL DEFAULT '{"state":"not_needed"}';
