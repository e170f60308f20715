-- Where a box hangs: what the relay agent or switch on the way of its DHCP
-- request said (option 82), by MAC.
CREATE TABLE ports (
  mac       TEXT PRIMARY KEY,
  relay     BLOB,
  circuit   TEXT NOT NULL,
  remote    TEXT NOT NULL,
  interface TEXT NOT NULL,
  seen      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX ports_seen ON ports(seen);

-- DHCP client identifiers (option 61, hex) of nodes: a node may ask from a
-- MAC that is not its own.
CREATE TABLE client_ids (
  id      TEXT PRIMARY KEY,
  node_id INTEGER NOT NULL UNIQUE REFERENCES nodes(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
