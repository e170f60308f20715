-- A boot is proven once its node has signed something with its session key.
-- Anybody on the boot network can begin a boot, and must not end the one that
-- runs: so what the proven boot said last is kept beside the phase shown.
ALTER TABLE statuses ADD COLUMN proven_boot TEXT NOT NULL DEFAULT '';
ALTER TABLE statuses ADD COLUMN proven_phase TEXT NOT NULL DEFAULT '';
-- 1: the operator switched the power after that.
ALTER TABLE statuses ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
UPDATE statuses SET proven_boot = boot, proven_phase = iif(phase = 'lost', 'ready', phase)
  WHERE phase IN ('init', 'fetch', 'services', 'ready', 'failed', 'lost');

-- What the box boots with and its token is bound to; NULL in older rows.
ALTER TABLE boots ADD COLUMN address BLOB;
CREATE INDEX boots_address ON boots(address, seq);
