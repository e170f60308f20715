-- What the nodes of a role boot (dsas.Published, JSON).
CREATE TABLE published (
  role TEXT PRIMARY KEY,
  doc  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
