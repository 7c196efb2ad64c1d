-- Keys, the audit log, telemetry, and the vectors of the in-memory search.

CREATE TABLE keys (
    id         uuid PRIMARY KEY,
    name       text NOT NULL CHECK (name <> ''),
    role       text NOT NULL CHECK (role IN ('viewer', 'client', 'operator', 'admin')),
    hash       bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    created_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE UNIQUE INDEX keys_name_in_use ON keys (name) WHERE revoked_at IS NULL;

CREATE FUNCTION lares_announce_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('lares_keys', '');
    RETURN NULL;
END $$;
CREATE TRIGGER keys_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON keys
    FOR EACH STATEMENT EXECUTE FUNCTION lares_announce_keys();

CREATE TABLE audit (
    id      uuid PRIMARY KEY,
    at      timestamptz NOT NULL,
    key_id  uuid,
    name    text NOT NULL,
    action  text NOT NULL,
    target  text NOT NULL,
    outcome text NOT NULL
);
CREATE INDEX audit_at ON audit (at DESC, id DESC);

CREATE TABLE events (
    id                uuid PRIMARY KEY,
    at                timestamptz NOT NULL,
    kind              text NOT NULL,
    subject           uuid,
    model             text,
    upstream          text,
    outcome           text NOT NULL,
    status            integer,
    prompt_tokens     bigint,
    completion_tokens bigint,
    latency_us        bigint NOT NULL,
    first_byte_us     bigint,
    detail            jsonb NOT NULL
);
CREATE INDEX events_at ON events (at DESC, id DESC);
CREATE INDEX events_kind ON events (kind, at DESC, id DESC);
CREATE INDEX events_subject ON events (subject, at, id) WHERE subject IS NOT NULL;

CREATE TABLE vectors (
    collection text NOT NULL,
    id         uuid NOT NULL,
    vector     bytea NOT NULL,  -- float4, little-endian
    payload    jsonb NOT NULL,
    PRIMARY KEY (collection, id)
);
