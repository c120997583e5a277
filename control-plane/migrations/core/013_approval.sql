-- Who registered a version, and who else has approved it. Unknown for those from before.
ALTER TABLE model_versions ADD COLUMN registered_by TEXT NOT NULL DEFAULT '';
ALTER TABLE model_versions ADD COLUMN approved_by TEXT;
ALTER TABLE model_versions ADD COLUMN approved_at_ms INTEGER;
-- What a run registers is registered by whoever submitted it.
ALTER TABLE runs ADD COLUMN submitted_by TEXT NOT NULL DEFAULT '';
