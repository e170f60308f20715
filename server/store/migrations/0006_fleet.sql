-- version changes with everything that a node's rendered files are made from:
-- nodes, sites, and which role a node serves (proven_boot, proven_phase, ended).
-- Heartbeats and the rest of a boot do not touch it.
CREATE TABLE fleet (version INTEGER NOT NULL);
INSERT INTO fleet VALUES (1);
CREATE TRIGGER fleet_nodes_insert AFTER INSERT ON nodes BEGIN UPDATE fleet SET version = version + 1; END;
CREATE TRIGGER fleet_nodes_update AFTER UPDATE ON nodes BEGIN UPDATE fleet SET version = version + 1; END;
CREATE TRIGGER fleet_nodes_delete AFTER DELETE ON nodes BEGIN UPDATE fleet SET version = version + 1; END;
CREATE TRIGGER fleet_sites_insert AFTER INSERT ON sites BEGIN UPDATE fleet SET version = version + 1; END;
CREATE TRIGGER fleet_sites_update AFTER UPDATE ON sites BEGIN UPDATE fleet SET version = version + 1; END;
CREATE TRIGGER fleet_sites_delete AFTER DELETE ON sites BEGIN UPDATE fleet SET version = version + 1; END;
CREATE TRIGGER fleet_serving AFTER UPDATE OF proven_boot, proven_phase, ended ON statuses
  WHEN (old.proven_phase = 'ready' AND old.ended = 0) <> (new.proven_phase = 'ready' AND new.ended = 0)
    OR (new.proven_phase = 'ready' AND new.ended = 0 AND new.proven_boot <> old.proven_boot)
  BEGIN UPDATE fleet SET version = version + 1; END;
