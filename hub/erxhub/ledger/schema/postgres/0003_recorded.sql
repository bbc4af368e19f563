-- When the newest entry of a stream was recorded (UTC ms), so that a hub whose clock is behind another's never records
-- before it. Null for a stream that was last extended under an older schema.

ALTER TABLE erxhub.state ADD COLUMN recorded_at_ms bigint;
