//! Who goes next: lanes of limited width to the upstreams, and one bounded, fair queue before them.
//!
//! Fair means round robin over callers (API keys) and first come, first served within one: a caller with a hundred
//! waiting requests delays another's only one by a single turn. [`Fair`] is the order alone, without clock or tasks;
//! [`Lanes`] adds the waiting. A [`Permit`] gives its place back when it is dropped, so neither a panic nor a client
//! that leaves can leak one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::route::{Candidates, least_loaded};

/// First back-off after an upstream failed; doubled with each failure in a row.
const BACK_OFF: Duration = Duration::from_millis(500);
/// Longest back-off, before jitter.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// Waiting entries in the order in which they will be served.
#[derive(Debug)]
pub struct Fair<T> {
    ring: VecDeque<Line<T>>,
    waiting: usize,
}

/// Everything one caller has waiting, oldest first. Never empty while it is in the ring.
#[derive(Debug)]
struct Line<T> {
    caller: Uuid,
    entries: VecDeque<(u64, T)>,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self { ring: VecDeque::new(), waiting: 0 }
    }
}

impl<T> Fair<T> {
    /// How many entries wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Puts an entry at the end of its caller's line. A caller who had nothing waiting joins the ring last.
    pub fn push(&mut self, caller: Uuid, ticket: u64, entry: T) {
        self.waiting += 1;
        match self.ring.iter_mut().find(|line| line.caller == caller) {
            Some(line) => line.entries.push_back((ticket, entry)),
            None => self.ring.push_back(Line { caller, entries: VecDeque::from([(ticket, entry)]) }),
        }
    }

    /// Puts an entry that already had its turn before everything else.
    pub fn push_first(&mut self, caller: Uuid, ticket: u64, entry: T) {
        self.waiting += 1;
        let mut line = match self.ring.iter().position(|line| line.caller == caller) {
            Some(at) => self.ring.remove(at),
            None => None,
        }
        .unwrap_or(Line { caller, entries: VecDeque::new() });
        line.entries.push_front((ticket, entry));
        self.ring.push_front(line);
    }

    /// Takes the next entry that `fits`; its caller goes to the end of the ring.
    pub fn take(&mut self, fits: impl Fn(&T) -> bool) -> Option<T> {
        let (at, place) =
            self.ring.iter().enumerate().find_map(|(at, line)| {
                line.entries.iter().position(|(_, entry)| fits(entry)).map(|place| (at, place))
            })?;
        let mut line = self.ring.remove(at)?;
        let (_, entry) = line.entries.remove(place)?;
        self.waiting -= 1;
        if !line.entries.is_empty() {
            self.ring.push_back(line);
        }
        Some(entry)
    }

    /// Takes one entry out, wherever it stands; its caller keeps the place.
    pub fn remove(&mut self, ticket: u64) -> Option<T> {
        let (at, place) = self.ring.iter().enumerate().find_map(|(at, line)| {
            line.entries.iter().position(|(held, _)| *held == ticket).map(|place| (at, place))
        })?;
        let line = self.ring.get_mut(at)?;
        let (_, entry) = line.entries.remove(place)?;
        self.waiting -= 1;
        if line.entries.is_empty() {
            self.ring.remove(at);
        }
        Some(entry)
    }
}

/// What is known of one upstream at this moment.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Most requests at the same time.
    pub capacity: usize,
    /// Requests it is working on.
    pub in_flight: usize,
    /// Failures since the last success.
    pub failures: u32,
    /// Avoided until then, while another upstream lives.
    down_until: Option<Instant>,
}

impl Lane {
    /// An idle, live upstream.
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), in_flight: 0, failures: 0, down_until: None }
    }

    /// Whether one more request may be sent.
    pub fn is_free(&self) -> bool {
        self.in_flight < self.capacity
    }

    /// Whether it is not in a back-off.
    pub fn is_live(&self, now: Instant) -> bool {
        self.down_until.is_none_or(|until| until <= now)
    }

    /// Starts a back-off, unless one is running: many requests that fail together are one failure.
    fn mark_down(&mut self, now: Instant) {
        if self.is_live(now) {
            let exponent = self.failures.min(8);
            let base = BACK_OFF.saturating_mul(1 << exponent).min(BACK_OFF_MAX);
            self.failures = self.failures.saturating_add(1);
            self.down_until = Some(now + base.mul_f64(rand::rng().random_range(1.0..1.5)));
        }
    }
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As many requests wait as may.
    Full,
    /// No upstream became free in time.
    TimedOut,
}

/// Whether a request comes to the queue for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It waits behind its caller's others, and is refused when the queue is full.
    First,
    /// It had a permit and its upstream failed: it goes before all others, even into a full queue.
    Again,
}

/// The lanes to all upstreams and the queue before them.
#[derive(Debug, Clone)]
pub struct Lanes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max_queued: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    lanes: Vec<Lane>,
    waiting: Fair<Waiter>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    candidates: Arc<Candidates>,
    grant: oneshot::Sender<Permit>,
}

impl Lanes {
    /// Lanes of these widths (at least 1 each); a candidate's lane is its place in this list.
    pub fn new(capacities: impl IntoIterator<Item = usize>, max_queued: usize) -> Self {
        let state =
            State { lanes: capacities.into_iter().map(Lane::new).collect(), waiting: Fair::default(), next_ticket: 0 };
        Self { shared: Arc::new(Shared { max_queued, state: Mutex::new(state) }) }
    }

    /// Waits for a place at one of the candidates: the least loaded if several are free, one in a back-off only when
    /// all are. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Refused::Full`] at once when `max_queued` requests wait, [`Refused::TimedOut`] at `deadline`.
    pub async fn acquire(
        &self,
        caller: Uuid,
        candidates: &Arc<Candidates>,
        turn: Turn,
        deadline: Instant,
    ) -> Result<Permit, Refused> {
        let (grant, mut granted) = oneshot::channel();
        let ticket = {
            let mut state = self.shared.lock();
            let now = Instant::now();
            if !state.waiting.is_empty() {
                state.serve_all(&self.shared, now);
            }
            if let Some(lane) = least_loaded(candidates, &state.lanes, now) {
                state.lanes[lane].in_flight += 1;
                return Ok(Permit { shared: Arc::clone(&self.shared), lane, held: true });
            }
            if turn == Turn::First && state.waiting.len() >= self.shared.max_queued {
                return Err(Refused::Full);
            }
            state.next_ticket += 1;
            let ticket = state.next_ticket;
            let waiter = Waiter { candidates: Arc::clone(candidates), grant };
            match turn {
                Turn::First => state.waiting.push(caller, ticket, waiter),
                Turn::Again => state.waiting.push_first(caller, ticket, waiter),
            }
            ticket
        };
        let _place = Place { shared: &self.shared, ticket };
        loop {
            let wake = self.shared.lock().next_back_off_end(candidates).map_or(deadline, |end| end.min(deadline));
            tokio::select! {
                biased;
                permit = &mut granted => return permit.map_err(|_| Refused::TimedOut),
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= deadline {
                        return Err(Refused::TimedOut);
                    }
                    self.shared.lock().serve_all(&self.shared, now);
                }
            }
        }
    }

    /// Whether a candidate other than `lane` is not in a back-off.
    pub fn another_lives(&self, candidates: &Candidates, lane: usize) -> bool {
        let state = self.shared.lock();
        let now = Instant::now();
        candidates.lanes().any(|other| other != lane && state.lanes[other].is_live(now))
    }

    /// Requests waiting.
    pub fn queued(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    /// The state of every lane, in the order of [`Lanes::new`].
    pub fn snapshot(&self) -> Vec<Lane> {
        self.shared.lock().lanes.clone()
    }
}

impl Shared {
    /// Nothing under the lock can panic half way, so a poisoned state is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn serve_all(&mut self, shared: &Arc<Shared>, now: Instant) {
        for lane in 0..self.lanes.len() {
            self.serve(shared, lane, now);
        }
    }

    /// Hands the free places of one lane to those who wait for it.
    fn serve(&mut self, shared: &Arc<Shared>, lane: usize, now: Instant) {
        while self.lanes[lane].is_free() {
            let lanes = &self.lanes;
            let Some(waiter) = self.waiting.take(|waiter| waiter.candidates.may_use(lane, lanes, now)) else { return };
            let permit = Permit { shared: Arc::clone(shared), lane, held: true };
            match waiter.grant.send(permit) {
                Ok(()) => self.lanes[lane].in_flight += 1,
                // Its client left. The permit never counted, and dropping it armed would lock what is locked.
                Err(mut permit) => permit.held = false,
            }
        }
    }

    fn next_back_off_end(&self, candidates: &Candidates) -> Option<Instant> {
        let now = Instant::now();
        candidates.lanes().filter_map(|lane| self.lanes[lane].down_until).filter(|until| *until > now).min()
    }
}

/// A place in the queue; leaves it when dropped.
struct Place<'a> {
    shared: &'a Shared,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Bound first, so that the lock is gone when the entry is dropped.
        let entry = self.shared.lock().waiting.remove(self.ticket);
        drop(entry);
    }
}

/// The right to have one request at one upstream.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    lane: usize,
    held: bool,
}

impl Permit {
    /// The upstream it is for.
    pub fn lane(&self) -> usize {
        self.lane
    }

    /// The upstream cannot be reached or is not ready: it is avoided for a while.
    pub fn failed(&self) {
        let mut state = self.shared.lock();
        let now = Instant::now();
        state.lanes[self.lane].mark_down(now);
        if !state.waiting.is_empty() {
            state.serve_all(&self.shared, now);
        }
    }

    /// The upstream answers.
    pub fn worked(&self) {
        let mut state = self.shared.lock();
        let lane = &mut state.lanes[self.lane];
        lane.failures = 0;
        if lane.down_until.take().is_some() && !state.waiting.is_empty() {
            state.serve_all(&self.shared, Instant::now());
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let mut state = self.shared.lock();
        let lane = &mut state.lanes[self.lane];
        lane.in_flight = lane.in_flight.saturating_sub(1);
        if !state.waiting.is_empty() {
            state.serve(&self.shared, self.lane, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn caller(n: u8) -> Uuid {
        Uuid::from_u128(u128::from(n) + 1)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn on(lanes: &[usize]) -> Arc<Candidates> {
        Arc::new(Candidates::new(lanes.iter().map(|lane| (*lane, String::new())).collect()))
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8),
        PushFirst(u8),
        Take,
        Remove(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..4u8).prop_map(Step::Push),
            1 => (0..4u8).prop_map(Step::PushFirst),
            3 => Just(Step::Take),
            1 => any::<u8>().prop_map(Step::Remove),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        #[test]
        fn everything_that_enters_leaves_exactly_once(steps in steps()) {
            let mut fair = Fair::default();
            let mut inside = Vec::new();
            let mut ticket = 0;
            for step in steps {
                match step {
                    Step::Push(from) => { ticket += 1; fair.push(caller(from), ticket, ticket); inside.push(ticket); }
                    Step::PushFirst(from) => {
                        ticket += 1;
                        fair.push_first(caller(from), ticket, ticket);
                        inside.push(ticket);
                    }
                    Step::Take => match fair.take(|_| true) {
                        Some(taken) => {
                            prop_assert!(inside.contains(&taken));
                            inside.retain(|held| *held != taken);
                        }
                        None => prop_assert!(inside.is_empty()),
                    },
                    Step::Remove(which) => {
                        let which = u64::from(which);
                        prop_assert_eq!(fair.remove(which).is_some(), inside.contains(&which));
                        inside.retain(|held| *held != which);
                    }
                }
                prop_assert_eq!(fair.len(), inside.len());
                prop_assert!(fair.ring.iter().all(|line| !line.entries.is_empty()));
            }
        }

        #[test]
        fn callers_take_turns_and_each_keeps_its_order(arrivals in prop::collection::vec(0..4u8, 1..80)) {
            let mut fair = Fair::default();
            for (ticket, from) in arrivals.iter().enumerate() {
                fair.push(caller(*from), ticket as u64, (*from, ticket));
            }
            let mut left: BTreeMap<u8, usize> = BTreeMap::new();
            for from in &arrivals {
                *left.entry(*from).or_default() += 1;
            }
            let mut served: BTreeMap<u8, Vec<usize>> = left.keys().map(|from| (*from, Vec::new())).collect();
            while let Some((from, ticket)) = fair.take(|_| true) {
                served.get_mut(&from).unwrap().push(ticket);
                *left.get_mut(&from).unwrap() -= 1;
                // Whoever still has something waiting was not passed by more than one turn.
                let most = served.values().map(Vec::len).max().unwrap();
                for (other, waiting) in &left {
                    prop_assert!(*waiting == 0 || served[other].len() + 1 >= most);
                }
            }
            for order in served.values() {
                prop_assert!(order.is_sorted());
            }
        }

        #[test]
        fn permits_never_exceed_a_lane_and_all_come_back(
            capacities in prop::collection::vec(1..3usize, 1..3),
            plan in prop::collection::vec((0..3u8, 0..30u64, 0..60u64, any::<bool>()), 1..40),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async move {
                let lanes = Lanes::new(capacities.iter().copied(), 1000);
                let all: Vec<usize> = (0..capacities.len()).collect();
                let candidates = on(&all);
                let mut running = Vec::new();
                for (from, patience, work, fails) in plan {
                    let (lanes, candidates, capacities) = (lanes.clone(), Arc::clone(&candidates), capacities.clone());
                    running.push(tokio::spawn(async move {
                        let deadline = Instant::now() + Duration::from_millis(patience);
                        let waiting = lanes.acquire(caller(from), &candidates, Turn::First, deadline);
                        // Clients also just leave, before the queue gives up on them.
                        let leave = Duration::from_millis(patience.max(1) - patience / 3);
                        let Ok(Ok(permit)) = tokio::time::timeout(leave, waiting).await else { return };
                        for (lane, capacity) in lanes.snapshot().iter().zip(&capacities) {
                            assert!(lane.in_flight <= *capacity);
                        }
                        tokio::time::sleep(Duration::from_millis(work)).await;
                        if fails { permit.failed() } else { permit.worked() }
                    }));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                for one in running {
                    one.await.unwrap();
                }
                assert_eq!(lanes.queued(), 0);
                assert!(lanes.snapshot().iter().all(|lane| lane.in_flight == 0));
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once() {
        let lanes = Lanes::new([1], 1);
        let candidates = on(&[0]);
        let held = lanes.acquire(caller(0), &candidates, Turn::First, soon()).await.unwrap();
        let second = lanes.acquire(caller(0), &candidates, Turn::First, soon());
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut second).await.is_err());
        let third = lanes.acquire(caller(1), &candidates, Turn::First, soon()).await;
        assert_eq!(third.unwrap_err(), Refused::Full);
        drop(held);
        assert_eq!(second.await.unwrap().lane(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_past_the_deadline() {
        let lanes = Lanes::new([1], 8);
        let candidates = on(&[0]);
        let _held = lanes.acquire(caller(0), &candidates, Turn::First, soon()).await.unwrap();
        let before = Instant::now();
        let refused = lanes.acquire(caller(0), &candidates, Turn::First, before + Duration::from_secs(3)).await;
        assert_eq!(refused.unwrap_err(), Refused::TimedOut);
        assert!(before.elapsed() < Duration::from_millis(3100));
        assert_eq!(lanes.queued(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_upstream_is_avoided_while_another_lives() {
        let lanes = Lanes::new([1, 1], 8);
        let candidates = on(&[0, 1]);
        let first = lanes.acquire(caller(0), &candidates, Turn::First, soon()).await.unwrap();
        let (down, up) = (first.lane(), 1 - first.lane());
        first.failed();
        drop(first);
        let second = lanes.acquire(caller(0), &candidates, Turn::First, soon()).await.unwrap();
        assert_eq!(second.lane(), up);
        // The live one is busy: the next waits for it rather than try the dead one, until the back-off is over.
        let before = Instant::now();
        let third = lanes.acquire(caller(0), &candidates, Turn::First, soon()).await.unwrap();
        assert_eq!(third.lane(), down);
        assert!(before.elapsed() >= BACK_OFF);
    }

    #[tokio::test(start_paused = true)]
    async fn with_all_upstreams_down_they_are_tried_all_the_same() {
        let lanes = Lanes::new([1], 8);
        let candidates = on(&[0]);
        let first = lanes.acquire(caller(0), &candidates, Turn::First, soon()).await.unwrap();
        first.failed();
        drop(first);
        let before = Instant::now();
        assert!(lanes.acquire(caller(0), &candidates, Turn::First, soon()).await.is_ok());
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[test]
    fn back_off_grows_to_its_bound_and_ends_with_a_success() {
        let mut lane = Lane::new(1);
        let mut now = Instant::now();
        let mut last = Duration::ZERO;
        for _ in 0..12 {
            lane.mark_down(now);
            let pause = lane.down_until.unwrap() - now;
            assert!(pause >= BACK_OFF && pause <= BACK_OFF_MAX.mul_f64(1.5));
            assert!(pause >= last.min(BACK_OFF_MAX).mul_f64(0.99) || pause >= BACK_OFF_MAX);
            last = pause;
            now += pause;
        }
        assert!(last >= BACK_OFF_MAX);
    }
}
