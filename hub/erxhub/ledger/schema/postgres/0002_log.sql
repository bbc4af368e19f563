-- The log over the entries: checkpoints, the tree's tiles and the map's pages. Run by `erxhub db migrate`; never edit it
-- after a release.
--
-- One unsharded schema on one node. Checkpoints, their notes and cosignatures are insert-only (by privileges, below);
-- that the numbers and the sizes are unique makes a fork impossible. Tiles and pages follow from the entries, grow with
-- them and may be replaced.

CREATE TABLE erxhub_log.checkpoint (
    no               bigint PRIMARY KEY CHECK (no > 0),
    size             bigint NOT NULL UNIQUE,
    root             bytea  NOT NULL CHECK (length(root) = 32),
    map_root         bytea  NOT NULL CHECK (length(map_root) = 32),
    covered_position bigint NOT NULL UNIQUE REFERENCES erxhub_log.log_index (idx),
    made_at_ms       bigint NOT NULL,
    CHECK (size = covered_position + no)
);

CREATE TABLE erxhub_log.checkpoint_note (
    no   bigint PRIMARY KEY REFERENCES erxhub_log.checkpoint (no),
    note text   NOT NULL
);

CREATE TABLE erxhub_log.cosignature (
    no      bigint NOT NULL REFERENCES erxhub_log.checkpoint (no),
    witness text   COLLATE "C" NOT NULL,
    line    text   NOT NULL,
    PRIMARY KEY (no, witness)
);

CREATE TABLE erxhub_log.tile (
    level  integer NOT NULL,
    number bigint  NOT NULL,
    hashes bytea   NOT NULL,
    PRIMARY KEY (level, number)
) WITH (fillfactor = 50);

ALTER TABLE erxhub_log.tile ALTER COLUMN hashes SET STORAGE EXTERNAL;  -- hashes do not compress

CREATE TABLE erxhub_log.page (
    path bytea PRIMARY KEY,
    data bytea NOT NULL
) WITH (fillfactor = 70);

-- The row that a step locks. It is not the sequencer's, so that no commit waits for a step.
CREATE TABLE erxhub_log.integrator (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row)
);

INSERT INTO erxhub_log.integrator DEFAULT VALUES;

GRANT SELECT, INSERT ON erxhub_log.checkpoint, erxhub_log.checkpoint_note, erxhub_log.cosignature TO erxhub_hub;
GRANT SELECT, INSERT, UPDATE ON erxhub_log.tile, erxhub_log.page TO erxhub_hub;
GRANT SELECT, UPDATE ON erxhub_log.integrator TO erxhub_hub;
