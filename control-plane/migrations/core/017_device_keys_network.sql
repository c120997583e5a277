-- The network that a pending key asks from: an IPv4 address or a /64. When all places are taken, the network with the most gives way.
ALTER TABLE device_keys ADD COLUMN network TEXT NOT NULL DEFAULT '';
