//! A live stream out of the supervisor that never slows the supervisor down: whoever reads too slowly is told how much they missed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use crate::journal::LogLine;

/// A stream of what happens from now on. It ends with the supervisor.
#[derive(Debug)]
pub struct Feed<T: 'static>(BroadcastStream<T>);

/// Log lines as they come.
pub type LogFeed = Feed<Arc<LogLine>>;

/// One element of a [`Feed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedItem<T> {
    /// The next one.
    Item(T),
    /// The reader was too slow: so many were left out here.
    Missed(u64),
}

impl<T: Clone + Send + 'static> Feed<T> {
    pub(crate) fn new(receiver: broadcast::Receiver<T>) -> Self {
        Self(BroadcastStream::new(receiver))
    }

    /// Waits for the next element; `None` when the supervisor is gone. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> Option<FeedItem<T>> {
        StreamExt::next(self).await
    }
}

impl<T: Clone + Send + 'static> Stream for Feed<T> {
    type Item = FeedItem<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<FeedItem<T>>> {
        self.0.poll_next_unpin(context).map(|item| {
            item.map(|item| match item {
                Ok(item) => FeedItem::Item(item),
                Err(BroadcastStreamRecvError::Lagged(missed)) => FeedItem::Missed(missed),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_told_how_much_it_missed() {
        let (sender, receiver) = broadcast::channel(2);
        let mut feed = Feed::new(receiver);
        for number in 0..5 {
            sender.send(number).unwrap();
        }
        assert_eq!(feed.next().await, Some(FeedItem::Missed(3)));
        assert_eq!(feed.next().await, Some(FeedItem::Item(3)));
        assert_eq!(feed.next().await, Some(FeedItem::Item(4)));
        drop(sender);
        assert_eq!(feed.next().await, None);
    }
}
