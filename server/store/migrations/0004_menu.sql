-- 1: the role was picked at the loader's menu, for this boot alone.
ALTER TABLE boots ADD COLUMN picked INTEGER NOT NULL DEFAULT 0;
