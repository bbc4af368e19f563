-- The ledger on SQLite, version 1. Run as one transaction by the store; never edit it after a release: add 0002.
--
-- Rows of `stream`, `entry`, `name`, `listing` and `catalog_row` are insert-only. What may be erased lies beside them
-- (content, reply, blob) and can be deleted but not changed. `state` is the fold of the entries and cannot exist without the entry that it stands on.

PRAGMA application_id = 0x65727868;  -- "erxh": lets the store refuse a file that is something else

CREATE TABLE schema_version (version INTEGER PRIMARY KEY);

-- Streams go by a small number inside; the 32-byte key is in one index only.
CREATE TABLE stream (
    no   INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    key  BLOB NOT NULL UNIQUE CHECK (length(key) = 32)
);

CREATE TABLE entry (
    position   INTEGER PRIMARY KEY,
    stream     INTEGER NOT NULL REFERENCES stream (no),
    version    INTEGER NOT NULL CHECK (version > 0),
    header     BLOB NOT NULL,
    commitment BLOB NOT NULL CHECK (length(commitment) = 32),
    leaf_hash  BLOB NOT NULL CHECK (length(leaf_hash) = 32),
    UNIQUE (stream, version),
    UNIQUE (stream, version, leaf_hash)  -- what `state` refers to
);

CREATE TABLE content (
    stream  INTEGER NOT NULL,
    version INTEGER NOT NULL,
    salt    BLOB NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (stream, version),
    FOREIGN KEY (stream, version) REFERENCES entry (stream, version)
);

CREATE TABLE state (
    stream    INTEGER PRIMARY KEY,
    version   INTEGER NOT NULL,
    leaf_hash BLOB NOT NULL,
    body      BLOB NOT NULL,
    due_at_ms INTEGER,
    FOREIGN KEY (stream, version, leaf_hash) REFERENCES entry (stream, version, leaf_hash)
);

CREATE INDEX state_due ON state (due_at_ms) WHERE due_at_ms IS NOT NULL;

CREATE TABLE name (
    space  TEXT NOT NULL,
    key    BLOB NOT NULL,
    stream INTEGER NOT NULL REFERENCES stream (no),
    PRIMARY KEY (space, key)
) WITHOUT ROWID;

CREATE TABLE listing (
    space    TEXT NOT NULL,
    key      BLOB NOT NULL,
    position INTEGER NOT NULL REFERENCES entry (position),
    value    BLOB NOT NULL,
    PRIMARY KEY (space, key, position)
) WITHOUT ROWID;

CREATE INDEX listing_position ON listing (position);  -- verification reads an entry's rows beside the entry

CREATE TABLE reply (
    caller      TEXT NOT NULL,
    request_id  TEXT NOT NULL,
    method      TEXT NOT NULL,
    content_mac BLOB NOT NULL,
    body        BLOB NOT NULL,
    stream      INTEGER,
    version     INTEGER,
    PRIMARY KEY (caller, request_id),
    FOREIGN KEY (stream, version) REFERENCES entry (stream, version)
);

CREATE TABLE blob (
    stream INTEGER NOT NULL REFERENCES stream (no),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    data   BLOB NOT NULL,
    PRIMARY KEY (stream, digest)
);

CREATE TABLE catalog_row (
    dataset TEXT NOT NULL,
    edition TEXT NOT NULL,
    code    TEXT NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (dataset, edition, code)
) WITHOUT ROWID;

CREATE TRIGGER entry_is_never_changed BEFORE UPDATE ON entry
BEGIN SELECT RAISE (ABORT, 'entry rows are insert-only'); END;

CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry
BEGIN SELECT RAISE (ABORT, 'entry rows are insert-only'); END;

CREATE TRIGGER stream_is_never_changed BEFORE UPDATE ON stream
BEGIN SELECT RAISE (ABORT, 'stream rows are insert-only'); END;

CREATE TRIGGER stream_is_never_deleted BEFORE DELETE ON stream
BEGIN SELECT RAISE (ABORT, 'stream rows are insert-only'); END;

CREATE TRIGGER content_is_never_changed BEFORE UPDATE ON content
BEGIN SELECT RAISE (ABORT, 'content rows can be erased but not changed'); END;

CREATE TRIGGER reply_is_never_changed BEFORE UPDATE ON reply
BEGIN SELECT RAISE (ABORT, 'reply rows can be erased but not changed'); END;

CREATE TRIGGER blob_is_never_changed BEFORE UPDATE ON blob
BEGIN SELECT RAISE (ABORT, 'blob rows can be erased but not changed'); END;

CREATE TRIGGER name_is_never_changed BEFORE UPDATE ON name
BEGIN SELECT RAISE (ABORT, 'name rows are insert-only'); END;

CREATE TRIGGER name_is_never_deleted BEFORE DELETE ON name
BEGIN SELECT RAISE (ABORT, 'name rows are insert-only'); END;

CREATE TRIGGER listing_is_never_changed BEFORE UPDATE ON listing
BEGIN SELECT RAISE (ABORT, 'listing rows are insert-only'); END;

CREATE TRIGGER listing_is_never_deleted BEFORE DELETE ON listing
BEGIN SELECT RAISE (ABORT, 'listing rows are insert-only'); END;

-- Also what makes another body for a known row a conflict: the store's upsert ends here.
CREATE TRIGGER catalog_row_is_never_changed BEFORE UPDATE ON catalog_row
BEGIN SELECT RAISE (ABORT, 'a catalogue edition never changes'); END;

CREATE TRIGGER catalog_row_is_never_deleted BEFORE DELETE ON catalog_row
BEGIN SELECT RAISE (ABORT, 'a catalogue edition never changes'); END;
