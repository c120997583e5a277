-- Which token a device enrolled with: it may do so again. Unknown for those from before.
ALTER TABLE devices ADD COLUMN token_hash BLOB;
