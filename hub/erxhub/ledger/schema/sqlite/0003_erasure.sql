-- Erasure: what was erased, and by which entry. Never edit it after a release.
--
-- Names and rows of lists stay insert-only, except where an entry of their stream says that its content is erased.

CREATE TABLE erasure (
    stream  INTEGER NOT NULL,
    version INTEGER NOT NULL CHECK (version > 1),
    PRIMARY KEY (stream, version),
    FOREIGN KEY (stream, version) REFERENCES entry (stream, version)
) WITHOUT ROWID;

CREATE TRIGGER erasure_is_never_changed BEFORE UPDATE ON erasure
BEGIN SELECT RAISE (ABORT, 'erasure rows are insert-only'); END;

CREATE TRIGGER erasure_is_never_deleted BEFORE DELETE ON erasure
BEGIN SELECT RAISE (ABORT, 'erasure rows are insert-only'); END;

DROP TRIGGER name_is_never_deleted;

CREATE TRIGGER name_is_never_deleted BEFORE DELETE ON name
WHEN NOT EXISTS (SELECT 1 FROM erasure WHERE stream = OLD.stream)
BEGIN SELECT RAISE (ABORT, 'name rows are insert-only'); END;

DROP TRIGGER listing_is_never_deleted;

CREATE TRIGGER listing_is_never_deleted BEFORE DELETE ON listing
WHEN NOT EXISTS (
    SELECT 1 FROM entry e JOIN erasure x ON x.stream = e.stream AND x.version > e.version WHERE e.position = OLD.position
)
BEGIN SELECT RAISE (ABORT, 'listing rows are insert-only'); END;
