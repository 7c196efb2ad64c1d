-- Failures of units that no pattern knows: what the vectors of `error-solutions` are made from.

CREATE TABLE failures (
    fingerprint text PRIMARY KEY CHECK (fingerprint <> ''),
    -- The line it was known by, with all masked that differs from one time to the next.
    template    text NOT NULL,
    -- That line as it was seen first, without what may be a secret.
    sample      text NOT NULL CHECK (char_length(sample) <= 500),
    -- Fingerprint of the first of those that are alike; unset: not compared yet.
    cluster     text,
    -- Id of the embedding model it was compared by; unset: by its words.
    model       text,
    seen        bigint NOT NULL DEFAULT 1,
    first_seen  timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX failures_last_seen ON failures (last_seen);
