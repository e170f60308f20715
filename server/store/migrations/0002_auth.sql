-- The operator's log-in. The password's hash is a secret setting.

-- One row at most: the one-time link by which the first password is set.
CREATE TABLE setup (
  id      INTEGER PRIMARY KEY CHECK (id = 1),
  hash    BLOB NOT NULL,
  expires INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
  hash      BLOB PRIMARY KEY,
  created   INTEGER NOT NULL,
  last_used INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
