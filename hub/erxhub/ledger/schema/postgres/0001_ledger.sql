-- The ledger on PostgreSQL, version 1. Run as one transaction by `erxhub db migrate`; never edit it after a release: add 0002.
--
-- Every table of domain state has `shard` first in each primary, unique and foreign key, so that the tables can be spread
-- over several nodes by it. Guards are privileges (at the end), because a spread table cannot have triggers of its own: a
-- hub may insert and read; only the eraser may delete, and only what may be erased. A reference from one shard into
-- another (`home` names its shard) cannot be a foreign key; the store checks it before it writes.

CREATE SCHEMA erxhub;
CREATE SCHEMA erxhub_log;  -- the log: unsharded, on one node

-- Streams go by a small number inside. `shard` is the area, or a hash of the key below 4096 for what belongs to no area.
CREATE TABLE erxhub.stream (
    shard integer NOT NULL,
    no    bigint  NOT NULL GENERATED ALWAYS AS IDENTITY,
    kind  text    COLLATE "C" NOT NULL,
    key   bytea   NOT NULL CHECK (length(key) = 32),
    PRIMARY KEY (shard, no),
    UNIQUE (shard, key)
);

CREATE INDEX stream_everywhere ON erxhub.stream (key);  -- for a key whose shard nobody told this hub yet

CREATE TABLE erxhub.entry (
    shard      integer NOT NULL,
    stream     bigint  NOT NULL,
    version    bigint  NOT NULL CHECK (version > 0),
    header     bytea   NOT NULL,
    commitment bytea   NOT NULL CHECK (length(commitment) = 32),
    leaf_hash  bytea   NOT NULL CHECK (length(leaf_hash) = 32),
    PRIMARY KEY (shard, stream, version),
    UNIQUE (shard, stream, version, leaf_hash),  -- what `state` refers to
    FOREIGN KEY (shard, stream) REFERENCES erxhub.stream (shard, no)
);

CREATE TABLE erxhub.content (
    shard   integer NOT NULL,
    stream  bigint  NOT NULL,
    version bigint  NOT NULL,
    salt    bytea   NOT NULL,
    payload bytea   NOT NULL,
    PRIMARY KEY (shard, stream, version),
    FOREIGN KEY (shard, stream, version) REFERENCES erxhub.entry (shard, stream, version)
);

-- One row for each stream: where it stands, and the row that an append locks. `body` is null where a stream keeps no
-- state. Room is left in each page, so that a new state can lie beside the old one.
CREATE TABLE erxhub.state (
    shard     integer NOT NULL,
    stream    bigint  NOT NULL,
    version   bigint  NOT NULL,
    leaf_hash bytea   NOT NULL,
    body      bytea,
    due_at_ms bigint,
    PRIMARY KEY (shard, stream),
    FOREIGN KEY (shard, stream, version, leaf_hash) REFERENCES erxhub.entry (shard, stream, version, leaf_hash)
) WITH (fillfactor = 70);

CREATE INDEX state_due ON erxhub.state (due_at_ms) WHERE due_at_ms IS NOT NULL;

-- The shard of a name follows from the name alone, or it would not be unique over all shards.
CREATE TABLE erxhub.name (
    shard  integer NOT NULL,
    space  text    COLLATE "C" NOT NULL,
    key    bytea   NOT NULL,
    home   integer NOT NULL,
    stream bigint  NOT NULL,
    PRIMARY KEY (shard, space, key)
);

CREATE INDEX name_order ON erxhub.name (space, key);  -- verification reads all names in one order

-- The shard of a list follows from the list. Rows are put here by the sequencer, which alone knows positions.
CREATE TABLE erxhub.listing (
    shard    integer NOT NULL,
    space    text    COLLATE "C" NOT NULL,
    key      bytea   NOT NULL,
    position bigint  NOT NULL,
    home     integer NOT NULL,
    stream   bigint  NOT NULL,
    version  bigint  NOT NULL,
    value    bytea   NOT NULL,
    PRIMARY KEY (shard, space, key, position)
);

CREATE INDEX listing_position ON erxhub.listing (position);  -- verification reads an entry's rows beside the entry

CREATE TABLE erxhub.reply (
    shard       integer NOT NULL,
    caller      text    COLLATE "C" NOT NULL,
    request_id  text    COLLATE "C" NOT NULL,
    method      text    COLLATE "C" NOT NULL,
    content_mac bytea   NOT NULL,
    body        bytea   NOT NULL,
    home        integer,
    stream      bigint,
    version     bigint,
    PRIMARY KEY (shard, caller, request_id)
);

CREATE TABLE erxhub.blob (
    shard  integer NOT NULL,
    stream bigint  NOT NULL,
    digest bytea   NOT NULL CHECK (length(digest) = 32),
    data   bytea   NOT NULL,
    PRIMARY KEY (shard, stream, digest),
    FOREIGN KEY (shard, stream) REFERENCES erxhub.stream (shard, no)
);

ALTER TABLE erxhub.blob ALTER COLUMN data SET STORAGE EXTERNAL;  -- files come compressed

-- Published code lists: the same on every node (a reference table), so they belong to no shard.
CREATE TABLE erxhub.catalog_row (
    dataset text  COLLATE "C" NOT NULL,
    edition text  COLLATE "C" NOT NULL,
    code    text  COLLATE "C" NOT NULL,
    body    bytea NOT NULL,
    PRIMARY KEY (dataset, edition, code)
);

-- Entries that have no place in the log yet, in the order in which their batches committed as far as one could depend on
-- another: the ticket of a batch is drawn when it has all its locks.
CREATE TABLE erxhub.unindexed (
    shard   integer NOT NULL,
    ticket  bigint  NOT NULL,
    ordinal integer NOT NULL,
    stream  bigint  NOT NULL,
    version bigint  NOT NULL,
    PRIMARY KEY (shard, ticket, ordinal)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX unindexed_order ON erxhub.unindexed (ticket, ordinal);

-- Rows of lists that wait for the position of their entry.
CREATE TABLE erxhub.unlisted (
    shard      integer NOT NULL,
    ticket     bigint  NOT NULL,
    ordinal    integer NOT NULL,
    stream     bigint  NOT NULL,
    version    bigint  NOT NULL,
    list_shard integer NOT NULL,
    space      text    COLLATE "C" NOT NULL,
    key        bytea   NOT NULL,
    value      bytea   NOT NULL,
    PRIMARY KEY (shard, ticket, ordinal)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX unlisted_order ON erxhub.unlisted (ticket, ordinal);

CREATE SEQUENCE erxhub_log.ticket;

-- The log: what stands at which position, from 1 and without a gap.
CREATE TABLE erxhub_log.log_index (
    idx     bigint  PRIMARY KEY CHECK (idx > 0),
    shard   integer NOT NULL,
    stream  bigint  NOT NULL,
    version bigint  NOT NULL,
    UNIQUE (shard, stream, version)
);

-- Who gives positions now. `epoch` goes up with every holder and fences off the one before.
CREATE TABLE erxhub_log.sequencer (
    only_row     boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch        bigint      NOT NULL DEFAULT 0,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    last_idx     bigint      NOT NULL DEFAULT 0
);

INSERT INTO erxhub_log.sequencer DEFAULT VALUES;

CREATE TABLE erxhub.schema_version (version integer PRIMARY KEY);

-- Guards. The two roles cannot log in: a hub's login is granted erxhub_hub, the login that erases erxhub_eraser.
GRANT USAGE ON SCHEMA erxhub, erxhub_log TO erxhub_hub;
GRANT SELECT, INSERT ON
    erxhub.stream, erxhub.entry, erxhub.content, erxhub.name, erxhub.listing, erxhub.reply, erxhub.blob,
    erxhub.catalog_row, erxhub_log.log_index
    TO erxhub_hub;
GRANT SELECT, INSERT, UPDATE ON erxhub.state TO erxhub_hub;
GRANT SELECT, INSERT, DELETE ON erxhub.unindexed, erxhub.unlisted TO erxhub_hub;
GRANT SELECT, UPDATE ON erxhub_log.sequencer TO erxhub_hub;
GRANT USAGE ON SEQUENCE erxhub_log.ticket TO erxhub_hub;
GRANT SELECT ON erxhub.schema_version TO erxhub_hub;

-- erxhub_eraser was granted erxhub_hub when the two were made.
GRANT DELETE ON erxhub.content, erxhub.reply, erxhub.blob TO erxhub_eraser;
