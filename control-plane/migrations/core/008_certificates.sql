-- Devices have certificates now, and no passwords.
ALTER TABLE devices DROP COLUMN secret_hash;
-- When the newest certificate ends; unknown for devices from before, which must enrol again.
ALTER TABLE devices ADD COLUMN certificate_not_after_ms INTEGER;
-- A device that was revoked has no access any more.
ALTER TABLE devices ADD COLUMN revoked_at_ms INTEGER;
