-- The log over the entries: checkpoints, the tree's tiles and the map's pages. Never edit it after a release.
--
-- Checkpoints, their notes and cosignatures are insert-only; that the numbers and the sizes are unique makes a fork
-- impossible. Tiles and pages follow from the entries, grow with them and may be replaced.

CREATE TABLE checkpoint (
    no               INTEGER PRIMARY KEY CHECK (no > 0),
    size             INTEGER NOT NULL UNIQUE,
    root             BLOB NOT NULL CHECK (length(root) = 32),
    map_root         BLOB NOT NULL CHECK (length(map_root) = 32),
    covered_position INTEGER NOT NULL UNIQUE REFERENCES entry (position),
    made_at_ms       INTEGER NOT NULL,
    CHECK (size = covered_position + no)
);

CREATE TABLE checkpoint_note (
    no   INTEGER PRIMARY KEY REFERENCES checkpoint (no),
    note TEXT NOT NULL
);

CREATE TABLE cosignature (
    no      INTEGER NOT NULL REFERENCES checkpoint (no),
    witness TEXT NOT NULL,
    line    TEXT NOT NULL,
    PRIMARY KEY (no, witness)
) WITHOUT ROWID;

CREATE TABLE tile (
    level  INTEGER NOT NULL,
    number INTEGER NOT NULL,
    hashes BLOB NOT NULL,
    PRIMARY KEY (level, number)
);

-- In the order of its path a page is followed by those below it: what changes together lies together.
CREATE TABLE page (
    path BLOB PRIMARY KEY,
    data BLOB NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER checkpoint_follows_the_one_before BEFORE INSERT ON checkpoint
WHEN NEW.no <> (SELECT ifnull(max(no), 0) + 1 FROM checkpoint)
    OR NEW.size <= (SELECT ifnull(max(size), 0) FROM checkpoint)
BEGIN SELECT RAISE (ABORT, 'a checkpoint follows the newest one'); END;

CREATE TRIGGER checkpoint_is_never_changed BEFORE UPDATE ON checkpoint
BEGIN SELECT RAISE (ABORT, 'checkpoint rows are insert-only'); END;

CREATE TRIGGER checkpoint_is_never_deleted BEFORE DELETE ON checkpoint
BEGIN SELECT RAISE (ABORT, 'checkpoint rows are insert-only'); END;

CREATE TRIGGER checkpoint_note_is_never_changed BEFORE UPDATE ON checkpoint_note
BEGIN SELECT RAISE (ABORT, 'checkpoint_note rows are insert-only'); END;

CREATE TRIGGER checkpoint_note_is_never_deleted BEFORE DELETE ON checkpoint_note
BEGIN SELECT RAISE (ABORT, 'checkpoint_note rows are insert-only'); END;

CREATE TRIGGER cosignature_is_never_changed BEFORE UPDATE ON cosignature
BEGIN SELECT RAISE (ABORT, 'cosignature rows are insert-only'); END;

CREATE TRIGGER cosignature_is_never_deleted BEFORE DELETE ON cosignature
BEGIN SELECT RAISE (ABORT, 'cosignature rows are insert-only'); END;

CREATE TRIGGER tile_is_never_deleted BEFORE DELETE ON tile
BEGIN SELECT RAISE (ABORT, 'tiles are replaced and never deleted'); END;

CREATE TRIGGER page_is_never_deleted BEFORE DELETE ON page
BEGIN SELECT RAISE (ABORT, 'pages are replaced and never deleted'); END;
