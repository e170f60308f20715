-- What the inventory role found on a box that is no node.
ALTER TABLE unknowns ADD COLUMN hardware TEXT NOT NULL DEFAULT '';
