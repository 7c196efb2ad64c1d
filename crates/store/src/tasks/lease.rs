//! What a worker does to a task it holds. Every write names the fence of its lease.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Approach, IterationEnd, Lease, Result, State, TASKS_CHANNEL, Task, TaskError, Tasks, append, db_count, notify,
    state_data, storable, storable_json, to_ms,
};

impl Tasks<'_> {
    /// Takes the oldest task that waits, or one whose worker fell silent. `None` when there is nothing to do.
    ///
    /// An iteration that was under way is marked interrupted in the same step.
    pub async fn take(&self, owner: &str, lease: Duration) -> Result<Option<Task>> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx
            .query_opt(
                "WITH next AS (
                     SELECT id, state FROM tasks
                     WHERE (state = 'queued' AND not_before <= clock_timestamp())
                        OR (state = 'running' AND lease_until < clock_timestamp())
                     ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
                 )
                 UPDATE tasks SET state = 'running', fence = fence + 1, lease_owner = $1,
                        lease_until = clock_timestamp() + $2::bigint * interval '1 millisecond',
                        started_at = coalesce(started_at, clock_timestamp()), reason = NULL
                 FROM next WHERE tasks.id = next.id
                 RETURNING tasks.*, next.state AS state_before",
                &[&owner, &to_ms(lease)],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let task = Task::from_row(&row)?;
        let before: State = row.try_get::<_, &str>("state_before")?.parse()?;
        tx.execute(
            "UPDATE iterations SET outcome = 'interrupted', finished_at = clock_timestamp()
             WHERE task_id = $1 AND outcome = 'running'",
            &[&task.id],
        )
        .await?;
        let message = if before == State::Running {
            format!("taken over by {owner}: the worker before it fell silent")
        } else {
            format!("taken by {owner}")
        };
        append(&tx, task.id, "state", &message, &state_data(State::Running)).await?;
        tx.commit().await?;
        Ok(Some(task))
    }

    /// Renews the lease and writes down the time worked so far. Returns whether a person asked to cancel.
    pub async fn heartbeat(&self, lease: Lease, extend: Duration, worked: Duration) -> Result<bool> {
        let client = self.pool.get().await?;
        let row = client
            .query_opt(
                "UPDATE tasks SET lease_until = clock_timestamp() + $3::bigint * interval '1 millisecond',
                        worked_ms = greatest(worked_ms, $4)
                 WHERE id = $1 AND fence = $2 AND state = 'running' RETURNING cancel_requested",
                &[&lease.task, &lease.fence, &to_ms(extend), &to_ms(worked)],
            )
            .await?;
        Ok(row.ok_or(TaskError::Fenced(lease.task))?.try_get(0)?)
    }

    /// Writes down where the task starts from and where it is worked on.
    pub async fn set_base(
        &self,
        lease: Lease,
        base_commit: &str,
        base_branch: Option<&str>,
        worktree: &str,
    ) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "UPDATE tasks SET base_commit = $3, base_branch = $4, worktree = $5
                 WHERE id = $1 AND fence = $2 AND state = 'running'",
                &[&lease.task, &lease.fence, &base_commit, &base_branch, &worktree],
            )
            .await?;
        held(changed, lease)
    }

    /// Writes down what the check said before anything was changed.
    pub async fn set_base_check(&self, lease: Lease, exit: Option<i32>, output: &str) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "UPDATE tasks SET base_check_exit = $3, base_check_output = $4
                 WHERE id = $1 AND fence = $2 AND state = 'running'",
                &[&lease.task, &lease.fence, &exit, &storable(output)],
            )
            .await?;
        held(changed, lease)
    }

    /// Begins an iteration. Doing so again, because the answer was lost on the way, changes nothing.
    pub async fn begin_iteration(
        &self,
        lease: Lease,
        number: u32,
        backend: &str,
        approach: Approach,
        temperature: f64,
    ) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "WITH held AS (SELECT id FROM tasks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE)
                 INSERT INTO iterations (task_id, number, fence, backend, approach, temperature)
                 SELECT id, $3, $2, $4, $5, $6 FROM held
                 ON CONFLICT (task_id, number) DO UPDATE SET fence = excluded.fence
                 WHERE iterations.fence = excluded.fence AND iterations.outcome = 'running'",
                &[&lease.task, &lease.fence, &db_count(number), &backend, &approach.as_str(), &temperature],
            )
            .await?;
        held(changed, lease)
    }

    /// Ends an iteration. Doing so again, because the answer was lost on the way, changes nothing.
    pub async fn finish_iteration(&self, lease: Lease, number: u32, end: &IterationEnd) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "WITH held AS (SELECT id FROM tasks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE)
                 UPDATE iterations SET finished_at = clock_timestamp(), outcome = $4, summary = $5, changed_files = $6,
                        checkpoint_commit = $7, check_exit = $8, check_output = $9, check_duration_ms = $10,
                        agent_duration_ms = $11, prompt_tokens = $12, completion_tokens = $13, tests_passed = $14,
                        tests_failed = $15
                 FROM held WHERE task_id = held.id AND number = $3 AND fence = $2 AND outcome IN ('running', $4)",
                &[
                    &lease.task,
                    &lease.fence,
                    &db_count(number),
                    &end.outcome.as_str(),
                    &storable(&end.summary),
                    &end.changed_files.iter().map(|f| storable(f)).collect::<Vec<_>>(),
                    &end.checkpoint_commit,
                    &end.check_exit,
                    &storable(&end.check_output),
                    &end.check_duration.map(to_ms),
                    &end.agent_duration.map(to_ms),
                    &end.prompt_tokens,
                    &end.completion_tokens,
                    &end.tests_passed.map(db_count),
                    &end.tests_failed.map(db_count),
                ],
            )
            .await?;
        held(changed, lease)
    }

    /// Forgets an iteration that did not get to run because the model could not be reached.
    pub async fn discard_iteration(&self, lease: Lease, number: u32) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "WITH held AS (SELECT id FROM tasks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE)
                 DELETE FROM iterations USING held
                 WHERE task_id = held.id AND number = $3 AND fence = $2 AND outcome = 'running'",
                &[&lease.task, &lease.fence, &db_count(number)],
            )
            .await?;
        held(changed, lease)
    }

    /// Appends a line to the log of a task this worker holds.
    pub async fn log(&self, lease: Lease, kind: &str, message: &str, data: &serde_json::Value) -> Result<()> {
        let client = self.pool.get().await?;
        // The row lock makes the lines of a task visible in the order of their numbers.
        let changed = client
            .execute(
                "WITH held AS (SELECT id FROM tasks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE),
                      line AS (INSERT INTO task_events (task_id, kind, message, data)
                               SELECT id, $3, $4, $5 FROM held RETURNING task_id)
                 SELECT pg_notify('lares_task_events', task_id::text) FROM line",
                &[&lease.task, &lease.fence, &kind, &storable(message), &storable_json(data)],
            )
            .await?;
        held(changed, lease)
    }

    /// Ends the work on a task this worker holds: the one way out of `running` besides [`Self::release`].
    ///
    /// `state` is final or [`State::AwaitingApproval`]; `branch` is the one that holds what was done, if any was;
    /// `worked` is the time worked on it in all.
    pub async fn finish(
        &self,
        lease: Lease,
        state: State,
        reason: &str,
        branch: Option<&str>,
        result_commit: Option<&str>,
        worked: Duration,
    ) -> Result<Task> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx
            .query_opt(
                "UPDATE tasks SET state = $3, reason = $4, branch = $5, result_commit = $6, worktree = NULL,
                        worked_ms = greatest(worked_ms, $7),
                        lease_owner = NULL, lease_until = NULL,
                        finished_at = CASE WHEN $3 = 'awaiting_approval' THEN NULL ELSE clock_timestamp() END
                 WHERE id = $1 AND fence = $2 AND state = 'running' RETURNING *",
                &[
                    &lease.task,
                    &lease.fence,
                    &state.as_str(),
                    &storable(reason),
                    &branch,
                    &result_commit,
                    &to_ms(worked),
                ],
            )
            .await?;
        let task = Task::from_row(&row.ok_or(TaskError::Fenced(lease.task))?)?;
        interrupt(&tx, task.id).await?;
        append(&tx, task.id, "state", &format!("{state}: {reason}"), &state_data(state)).await?;
        notify(&tx, TASKS_CHANNEL, task.id).await?;
        tx.commit().await?;
        Ok(task)
    }

    /// Puts a task back into the queue, to be taken again by anyone after `wait`.
    pub async fn release(&self, lease: Lease, wait: Duration, reason: &str, worked: Duration) -> Result<()> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let changed = tx
            .execute(
                "UPDATE tasks SET state = 'queued', reason = $3, lease_owner = NULL, lease_until = NULL, worktree = NULL,
                        not_before = clock_timestamp() + $4::bigint * interval '1 millisecond',
                        worked_ms = greatest(worked_ms, $5)
                 WHERE id = $1 AND fence = $2 AND state = 'running'",
                &[&lease.task, &lease.fence, &storable(reason), &to_ms(wait), &to_ms(worked)],
            )
            .await?;
        held(changed, lease)?;
        interrupt(&tx, lease.task).await?;
        append(&tx, lease.task, "state", &format!("queued: {reason}"), &state_data(State::Queued)).await?;
        notify(&tx, TASKS_CHANNEL, lease.task).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Whether the write of a worker found the lease it names.
fn held(changed: u64, lease: Lease) -> Result<()> {
    if changed == 0 { Err(TaskError::Fenced(lease.task)) } else { Ok(()) }
}

async fn interrupt(tx: &deadpool_postgres::Transaction<'_>, id: Uuid) -> Result<()> {
    tx.execute(
        "UPDATE iterations SET outcome = 'interrupted', finished_at = clock_timestamp()
         WHERE task_id = $1 AND outcome = 'running'",
        &[&id],
    )
    .await?;
    Ok(())
}
