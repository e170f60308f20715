-- Times are nanoseconds since 1970 UTC, 0 or NULL where unset. MACs are text as
-- dsas.MAC writes them. Addresses are 4 (IPv4) or 16 bytes (IPv6) in network
-- order, so that a range of them is a range of keys.

-- doc is the dsas.Node as JSON, without the BMC's password. Ids are never used
-- again (AUTOINCREMENT): secrets are bound to them.
CREATE TABLE nodes (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  name         TEXT NOT NULL UNIQUE,
  doc          TEXT NOT NULL,
  bmc_password BLOB
) STRICT;

CREATE TABLE nics (
  mac     TEXT PRIMARY KEY,
  node_id INTEGER NOT NULL REFERENCES nodes(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX nics_node ON nics(node_id);

CREATE TABLE addresses (
  address BLOB PRIMARY KEY,
  node_id INTEGER NOT NULL REFERENCES nodes(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX addresses_node ON addresses(node_id);

CREATE TABLE statuses (
  node_id    INTEGER PRIMARY KEY REFERENCES nodes(id) ON DELETE CASCADE,
  phase      TEXT NOT NULL,
  since      INTEGER NOT NULL DEFAULT 0,
  last_seen  INTEGER NOT NULL DEFAULT 0,
  last_event INTEGER,
  boot       TEXT NOT NULL DEFAULT '',
  running    TEXT NOT NULL DEFAULT '',
  image      TEXT NOT NULL DEFAULT ''
) STRICT;

-- AUTOINCREMENT: a reader that goes on "after id N" must never meet N again.
CREATE TABLE events (
  id       INTEGER PRIMARY KEY AUTOINCREMENT,
  time     INTEGER NOT NULL,
  node     TEXT NOT NULL,
  mac      TEXT NOT NULL,
  boot     TEXT NOT NULL,
  kind     TEXT NOT NULL,
  message  TEXT NOT NULL,
  duration INTEGER NOT NULL,
  bytes    INTEGER NOT NULL,
  detail   TEXT NOT NULL
) STRICT;
CREATE INDEX events_node ON events(node, id);
CREATE INDEX events_boot ON events(boot, id) WHERE boot <> '';

CREATE TABLE unknowns (
  mac          TEXT PRIMARY KEY,
  arch         TEXT NOT NULL,
  vendor_class TEXT NOT NULL,
  guid         TEXT NOT NULL,
  address      BLOB,
  first        INTEGER NOT NULL,
  last         INTEGER NOT NULL,
  count        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX unknowns_last ON unknowns(last);

-- bound: acknowledged. An address that is only offered, or was released, has
-- bound 0: free once expired, but still found again by its MAC.
CREATE TABLE leases (
  address   BLOB PRIMARY KEY,
  mac       TEXT NOT NULL,
  client_id TEXT NOT NULL,
  expires   INTEGER NOT NULL,
  bound     INTEGER NOT NULL,
  declined  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_mac ON leases(mac);

CREATE TABLE sites (
  name    TEXT PRIMARY KEY,
  address BLOB NOT NULL,
  port    INTEGER NOT NULL,
  doc     TEXT NOT NULL,
  UNIQUE (address, port)
) STRICT;

-- seq orders boots; ids are random. node_id is NULL for a boot of an unknown MAC.
CREATE TABLE boots (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT,
  id          TEXT NOT NULL UNIQUE,
  node_id     INTEGER REFERENCES nodes(id) ON DELETE CASCADE,
  mac         TEXT NOT NULL,
  role        TEXT NOT NULL,
  image       TEXT NOT NULL,
  token_hash  BLOB NOT NULL UNIQUE,
  session     BLOB NOT NULL,
  created     INTEGER NOT NULL,
  first_event INTEGER
) STRICT;
CREATE INDEX boots_node ON boots(node_id, seq);

CREATE TABLE host_keys (
  node_id INTEGER PRIMARY KEY REFERENCES nodes(id) ON DELETE CASCADE,
  key     BLOB NOT NULL
) STRICT;

CREATE TABLE settings (
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE secret_settings (
  key   TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
  name      TEXT PRIMARY KEY,
  hash      BLOB NOT NULL UNIQUE,
  created   INTEGER NOT NULL,
  last_used INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
