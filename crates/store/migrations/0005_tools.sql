-- Tool servers, their tools, every version of a definition, and what changed when.

CREATE TABLE tool_servers (
    name                 text PRIMARY KEY CHECK (name <> ''),
    -- Where it was found: configuration, client-file, port, unit; and the file, port or unit.
    source               text NOT NULL,
    origin               text NOT NULL,
    -- How it is reached, for people: secrets are masked.
    transport            jsonb NOT NULL,
    -- SHA-256 over all that would be run or connected to, secrets included, and the one a person approved.
    fingerprint          text NOT NULL,
    approved_fingerprint text,
    state                text NOT NULL CHECK (state IN ('approved', 'proposed', 'rejected')),
    trusted              boolean NOT NULL DEFAULT false,
    first_seen           timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen            timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Since when it is found no more.
    gone_since           timestamptz
);

CREATE TABLE tools (
    -- SERVER__TOOL.
    id            text PRIMARY KEY CHECK (id <> ''),
    server        text NOT NULL REFERENCES tool_servers (name) ON DELETE CASCADE,
    state         text NOT NULL CHECK (state IN ('approved', 'quarantined', 'blocked')),
    -- Why it is in that state.
    reason        text NOT NULL,
    -- Name of the key of who put it aside; unset: nobody did, the rules hold it if it is held.
    held_by       text,
    -- SHA-256 of the definition its server gives now, and of the one that was approved last.
    hash          text NOT NULL,
    approved_hash text,
    -- What the rules found in the present definition.
    findings      jsonb NOT NULL DEFAULT '[]',
    tags          text[] NOT NULL DEFAULT '{}',
    first_seen    timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen     timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Since when its server lists it no more.
    gone_since    timestamptz,
    -- Calls that reached the server; of these those that failed; the last one.
    calls         bigint NOT NULL DEFAULT 0,
    failures      bigint NOT NULL DEFAULT 0,
    -- Calls by time: bucket n counts those of less than 2^(n/2) ms that no lower bucket counts.
    latency       bigint[] NOT NULL DEFAULT '{}',
    last_call     timestamptz
);
CREATE INDEX tools_server ON tools (server);

CREATE TABLE tool_versions (
    tool        text NOT NULL REFERENCES tools (id) ON DELETE CASCADE,
    hash        text NOT NULL,
    definition  jsonb NOT NULL,
    first_seen  timestamptz NOT NULL DEFAULT clock_timestamp(),
    approved_at timestamptz,
    -- Name of a key, or `configuration` for a trusted server's.
    approved_by text,
    PRIMARY KEY (tool, hash)
);

CREATE TABLE tool_changes (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind      text NOT NULL,
    server    text NOT NULL,
    tool      text,
    from_hash text,
    to_hash   text,
    -- Name of a key, or `discovery`.
    actor     text NOT NULL,
    reason    text NOT NULL DEFAULT ''
);
CREATE INDEX tool_changes_tool ON tool_changes (tool, id);
