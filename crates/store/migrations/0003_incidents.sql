-- Incidents of units, their timelines, what remedies are worth, and the wishes of people.

-- One healer acts on a host at a time; its fence goes up with each take-over, and a write that names an older one is
-- refused.
CREATE TABLE healer_leases (
    host        text PRIMARY KEY CHECK (host <> ''),
    owner       text NOT NULL,
    fence       bigint NOT NULL DEFAULT 1,
    lease_until timestamptz NOT NULL
);

CREATE TABLE incidents (
    id           uuid PRIMARY KEY,
    host         text NOT NULL,
    unit         text NOT NULL,
    state        text NOT NULL CHECK (state IN ('open', 'held', 'asking', 'healing', 'verifying', 'closed')),
    outcome      text,
    -- Pattern or fingerprint the failure is known by; empty: neither.
    known_as     text NOT NULL DEFAULT '',
    cause        text NOT NULL DEFAULT '',
    -- What it has in common with other incidents.
    shared       jsonb,
    needs_person boolean NOT NULL DEFAULT false,
    opened_at    timestamptz NOT NULL,
    closed_at    timestamptz,
    -- Milliseconds from the first symptom until the unit was up again, once that is verified.
    recovered_ms bigint,
    last_seq     integer NOT NULL,
    CHECK ((state = 'closed') = (closed_at IS NOT NULL)),
    CHECK ((state = 'closed') = (outcome IS NOT NULL))
);
CREATE UNIQUE INDEX incidents_one_open ON incidents (host, unit) WHERE closed_at IS NULL;
CREATE INDEX incidents_by_unit ON incidents (unit, id);
CREATE INDEX incidents_closed ON incidents (host, closed_at) WHERE closed_at IS NOT NULL;

CREATE TABLE incident_events (
    incident_id uuid NOT NULL REFERENCES incidents (id) ON DELETE CASCADE,
    seq         integer NOT NULL CHECK (seq > 0),
    at          timestamptz NOT NULL,
    -- Boot that wrote it, and milliseconds since that boot: the clock that nothing makes jump.
    boot        uuid NOT NULL,
    boot_ms     bigint NOT NULL,
    -- Milliseconds since the incident began.
    ms          bigint NOT NULL,
    kind        text NOT NULL,
    message     text NOT NULL,
    data        jsonb NOT NULL,
    PRIMARY KEY (incident_id, seq)
);

CREATE TABLE remedy_stats (
    host     text NOT NULL,
    unit     text NOT NULL,
    known_as text NOT NULL,
    remedy   text NOT NULL,
    helped   integer NOT NULL DEFAULT 0,
    failed   integer NOT NULL DEFAULT 0,
    approved boolean NOT NULL DEFAULT false,
    PRIMARY KEY (host, unit, known_as, remedy)
);

CREATE TABLE pauses (
    host   text NOT NULL,
    unit   text NOT NULL,
    -- Unset: until it is resumed.
    until  timestamptz,
    by     text NOT NULL,
    reason text NOT NULL,
    since  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (host, unit)
);

CREATE TABLE generations_bad (
    host       text NOT NULL,
    generation bigint NOT NULL,
    -- Store path of the system; a number is given again after old generations are deleted.
    system     text NOT NULL,
    incident   uuid NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (host, system)
);
