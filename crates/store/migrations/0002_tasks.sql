-- Coding tasks, what was tried on them, and the log that is streamed while they run.

CREATE TABLE tasks (
    id                uuid PRIMARY KEY,
    prompt            text NOT NULL,
    repo              text NOT NULL,
    check_command     text NOT NULL,
    backend           text NOT NULL,
    model             text,
    max_iterations    integer NOT NULL CHECK (max_iterations > 0),
    timeout_ms        bigint NOT NULL CHECK (timeout_ms > 0),
    require_approval  boolean NOT NULL DEFAULT false,
    state             text NOT NULL DEFAULT 'queued'
                      CHECK (state IN ('queued', 'running', 'awaiting_approval', 'succeeded', 'failed', 'cancelled')),
    reason            text,
    created_by        uuid,
    idempotency_key   text,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at        timestamptz,
    finished_at       timestamptz,
    -- Not taken before this; a task that was put back waits here.
    not_before        timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Time worked on it so far, which the timeout bounds: a machine that is off does not use it up.
    worked_ms         bigint NOT NULL DEFAULT 0,
    base_commit       text,
    base_branch       text,
    branch            text,
    worktree          text,
    base_check_exit   integer,
    base_check_output text,
    result_commit     text,
    merged_commit     text,
    merged_at         timestamptz,
    cancel_requested  boolean NOT NULL DEFAULT false,
    lease_owner       text,
    lease_until       timestamptz,
    -- Goes up with each take-over; a write that names an older one is refused.
    fence             bigint NOT NULL DEFAULT 0,
    CHECK ((state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)),
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
);

-- One key of a caller names one task; callers cannot meet in each other's keys.
CREATE UNIQUE INDEX tasks_idempotency
    ON tasks (coalesce(created_by, '00000000-0000-0000-0000-000000000000'::uuid), idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_to_take ON tasks (id) WHERE state IN ('queued', 'running');
CREATE INDEX tasks_by_state ON tasks (state, id);

CREATE TABLE iterations (
    task_id           uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    number            integer NOT NULL CHECK (number > 0),
    fence             bigint NOT NULL,
    backend           text NOT NULL,
    approach          text NOT NULL CHECK (approach IN ('first', 'repair', 'resample')),
    temperature       double precision NOT NULL,
    started_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at       timestamptz,
    outcome           text NOT NULL DEFAULT 'running'
                      CHECK (outcome IN ('running', 'passed', 'failed', 'no_change', 'agent_failed', 'interrupted')),
    summary           text NOT NULL DEFAULT '',
    changed_files     text[] NOT NULL DEFAULT '{}',
    checkpoint_commit text,
    check_exit        integer,
    check_output      text NOT NULL DEFAULT '',
    check_duration_ms bigint,
    agent_duration_ms bigint,
    prompt_tokens     bigint,
    completion_tokens bigint,
    tests_passed      integer,
    tests_failed      integer,
    PRIMARY KEY (task_id, number)
);

CREATE TABLE task_events (
    seq     bigserial PRIMARY KEY,
    task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind    text NOT NULL,
    message text NOT NULL,
    data    jsonb NOT NULL DEFAULT '{}'
);

CREATE INDEX task_events_by_task ON task_events (task_id, seq);

-- One row that tells this queue from every other one: worktrees on disk are marked with it.
CREATE TABLE task_queue (
    id  uuid PRIMARY KEY,
    one boolean NOT NULL DEFAULT true UNIQUE CHECK (one)
);
INSERT INTO task_queue (id) VALUES (gen_random_uuid());
