-- Spreads the tables of a ledger over the nodes of a Citus cluster. Run once as the owner, with psql on the coordinator,
-- after `erxhub db migrate` and before the first hub. What it names is held against the schema by a test; it has not been
-- run on a cluster yet (docs/scale.md says what is still in the way).
--
-- The schema erxhub_log is left alone: the log is one, and stays on the coordinator.

CREATE EXTENSION IF NOT EXISTS citus;

-- The same on every node.
SELECT create_reference_table('erxhub.catalog_row');
SELECT create_reference_table('erxhub.schema_version');

-- By shard, and all together: rows of one shard are on one node, whichever table they are in. What is referred to first.
SELECT create_distributed_table('erxhub.stream', 'shard', colocate_with => 'none');
SELECT create_distributed_table('erxhub.entry', 'shard', colocate_with => 'erxhub.stream');
SELECT create_distributed_table('erxhub.content', 'shard', colocate_with => 'erxhub.stream');
SELECT create_distributed_table('erxhub.state', 'shard', colocate_with => 'erxhub.stream');
SELECT create_distributed_table('erxhub.blob', 'shard', colocate_with => 'erxhub.stream');
SELECT create_distributed_table('erxhub.name', 'shard', colocate_with => 'erxhub.stream');
SELECT create_distributed_table('erxhub.listing', 'shard', colocate_with => 'erxhub.stream');
SELECT create_distributed_table('erxhub.reply', 'shard', colocate_with => 'erxhub.stream');
SELECT create_distributed_table('erxhub.unindexed', 'shard', colocate_with => 'erxhub.stream');
SELECT create_distributed_table('erxhub.unlisted', 'shard', colocate_with => 'erxhub.stream');

-- An area of its own node, where one is large: SELECT isolate_tenant_to_new_shard('erxhub.stream', 330100, 'CASCADE');
