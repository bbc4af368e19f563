-- Erasure: a hub's role may delete nothing, and erases through one function that looks for the entry that says so. Run
-- by `erxhub db migrate`; never edit it after a release.
--
-- The function works with its owner's rights. It takes away what lies beside the entries of a stream before the given
-- one, which must be of the type content.erased (0x0121); of a reply it leaves that there was one. Names and replies are
-- told to it, since they lie in other shards than the stream, and are touched only where they belong to it.

CREATE FUNCTION erxhub.erase(
    of_shard integer, of_stream bigint, of_version bigint,
    name_shards integer[], name_spaces text[], name_keys bytea[],
    reply_shards integer[], reply_callers text[], reply_ids text[]
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    said bytea;
    type_at integer;
    places bigint[];
BEGIN
    SELECT header INTO said FROM erxhub.entry
    WHERE shard = of_shard AND stream = of_stream AND version = of_version;
    -- The format, then each field after its length: stream kind, key 32, version 8, kind 1, type 2.
    type_at := 1 + 4 + get_byte(said, 4) + 4 + 32 + 4 + 8 + 4 + 1 + 4;
    IF said IS NULL OR get_byte(said, type_at) * 256 + get_byte(said, type_at + 1) <> 289 THEN
        RAISE EXCEPTION 'no entry says that this content is erased' USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT array_agg(idx) INTO places FROM erxhub_log.log_index
    WHERE shard = of_shard AND stream = of_stream AND version < of_version;
    DELETE FROM erxhub.listing WHERE position = ANY (places) AND home = of_shard AND stream = of_stream;
    DELETE FROM erxhub.unlisted WHERE shard = of_shard AND stream = of_stream AND version < of_version;
    DELETE FROM erxhub.content WHERE shard = of_shard AND stream = of_stream AND version < of_version;
    DELETE FROM erxhub.blob WHERE shard = of_shard AND stream = of_stream;
    DELETE FROM erxhub.name n USING unnest(name_shards, name_spaces, name_keys) AS w(shard, space, key)
    WHERE n.shard = w.shard AND n.space = w.space AND n.key = w.key AND n.home = of_shard AND n.stream = of_stream;
    UPDATE erxhub.reply r SET content_mac = '', body = ''
    FROM unnest(reply_shards, reply_callers, reply_ids) AS w(shard, caller, request_id)
    WHERE r.shard = w.shard AND r.caller = w.caller AND r.request_id = w.request_id
        AND r.home = of_shard AND r.stream = of_stream;
END
$$;

REVOKE ALL ON FUNCTION erxhub.erase FROM PUBLIC;
GRANT EXECUTE ON FUNCTION erxhub.erase TO erxhub_hub;
