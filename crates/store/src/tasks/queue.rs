//! What callers do to the queue: submit, cancel, approve, note a merge.

use uuid::Uuid;

use super::{
    Cancelled, NewTask, Result, State, Submitted, TASKS_CHANNEL, Task, TaskError, Tasks, append, db_count, notify,
    state_data, storable, to_ms,
};

impl Tasks<'_> {
    /// Puts a task into the queue, unless `max_queued` wait already or the caller's idempotency key names one.
    pub async fn submit(&self, new: &NewTask, max_queued: u32) -> Result<Submitted> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        // One submission at a time, so that the bound holds and a key makes one task.
        tx.execute("SELECT pg_advisory_xact_lock(hashtext('lares_tasks.submit'))", &[]).await?;
        if let Some(key) = &new.idempotency_key {
            let existing = tx
                .query_opt(
                    "SELECT * FROM tasks WHERE idempotency_key = $1 AND created_by IS NOT DISTINCT FROM $2",
                    &[key, &new.created_by],
                )
                .await?;
            if let Some(row) = existing {
                let task = Task::from_row(&row)?;
                return if new.asks_the_same(&task) {
                    Ok(Submitted::Existing(task))
                } else {
                    Err(TaskError::IdempotencyMismatch(task.id))
                };
            }
        }
        let waiting: i64 = tx.query_one("SELECT count(*) FROM tasks WHERE state = 'queued'", &[]).await?.try_get(0)?;
        if waiting >= i64::from(max_queued) {
            return Err(TaskError::QueueFull(max_queued));
        }
        let row = tx
            .query_one(
                "INSERT INTO tasks (id, prompt, repo, check_command, backend, model, max_iterations, timeout_ms,
                                    require_approval, created_by, idempotency_key)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING *",
                &[
                    &Uuid::now_v7(),
                    &new.prompt,
                    &new.repo,
                    &new.check_command,
                    &new.backend,
                    &new.model,
                    &db_count(new.max_iterations),
                    &to_ms(new.timeout),
                    &new.require_approval,
                    &new.created_by,
                    &new.idempotency_key,
                ],
            )
            .await?;
        let task = Task::from_row(&row)?;
        append(&tx, task.id, "state", "queued", &state_data(State::Queued)).await?;
        notify(&tx, TASKS_CHANNEL, task.id).await?;
        tx.commit().await?;
        Ok(Submitted::New(task))
    }

    /// Cancels a task: at once when no worker holds it, else by asking that worker.
    ///
    /// Cancelling a task that awaits approval rejects its result. One that is cancelled already is left as it is.
    pub async fn cancel(&self, id: Uuid, reason: &str) -> Result<Cancelled> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx.query_opt("SELECT * FROM tasks WHERE id = $1 FOR UPDATE", &[&id]).await?;
        let task = Task::from_row(&row.ok_or(TaskError::NotFound(id))?)?;
        let outcome = match task.state {
            State::Cancelled => return Ok(Cancelled::Now(task)),
            State::Succeeded | State::Failed => {
                return Err(TaskError::Conflict { id, state: task.state, action: "cancelled" });
            }
            State::Running if task.cancel_requested => return Ok(Cancelled::Requested(task)),
            State::Running => {
                let row =
                    tx.query_one("UPDATE tasks SET cancel_requested = true WHERE id = $1 RETURNING *", &[&id]).await?;
                append(&tx, id, "log", "cancelling", &serde_json::json!({})).await?;
                Cancelled::Requested(Task::from_row(&row)?)
            }
            State::Queued | State::AwaitingApproval => {
                let row = tx
                    .query_one(
                        "UPDATE tasks SET cancel_requested = true, state = 'cancelled', reason = $2, worktree = NULL,
                                finished_at = clock_timestamp() WHERE id = $1 RETURNING *",
                        &[&id, &storable(reason)],
                    )
                    .await?;
                append(&tx, id, "state", &format!("cancelled: {reason}"), &state_data(State::Cancelled)).await?;
                Cancelled::Now(Task::from_row(&row)?)
            }
        };
        notify(&tx, TASKS_CHANNEL, id).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    /// Approves a result: the task has succeeded.
    pub async fn approve(&self, id: Uuid, reason: &str) -> Result<Task> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx
            .query_opt(
                "UPDATE tasks SET state = 'succeeded', reason = $2, finished_at = clock_timestamp()
                 WHERE id = $1 AND state = 'awaiting_approval' RETURNING *",
                &[&id, &storable(reason)],
            )
            .await?;
        let Some(row) = row else {
            drop(tx);
            drop(client);
            let task = self.get(id).await?;
            return Err(TaskError::Conflict { id, state: task.state, action: "approved" });
        };
        append(&tx, id, "state", &format!("succeeded: {reason}"), &state_data(State::Succeeded)).await?;
        notify(&tx, TASKS_CHANNEL, id).await?;
        tx.commit().await?;
        Task::from_row(&row)
    }

    /// Writes down that the result arrived in the base branch. Doing so twice keeps the first.
    pub async fn set_merged(&self, id: Uuid, commit: &str) -> Result<Task> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx
            .query_opt(
                "UPDATE tasks SET merged_commit = coalesce(merged_commit, $2),
                        merged_at = coalesce(merged_at, clock_timestamp())
                 WHERE id = $1 AND state = 'succeeded' RETURNING *",
                &[&id, &commit],
            )
            .await?;
        let Some(row) = row else {
            drop(tx);
            drop(client);
            let task = self.get(id).await?;
            return Err(TaskError::Conflict { id, state: task.state, action: "merged" });
        };
        append(&tx, id, "log", &format!("merged as {commit}"), &serde_json::json!({ "merged_commit": commit })).await?;
        tx.commit().await?;
        Task::from_row(&row)
    }
}

impl NewTask {
    fn asks_the_same(&self, task: &Task) -> bool {
        self.prompt == task.prompt
            && self.repo == task.repo
            && self.check_command == task.check_command
            && self.backend == task.backend
            && self.model == task.model
            && self.max_iterations == task.max_iterations
            && to_ms(self.timeout) == to_ms(task.timeout)
            && self.require_approval == task.require_approval
    }
}
