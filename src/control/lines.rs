//! The two ends of a stream of lines: the verb's, which blocks, and the client's.
//!
//! Invariant: a problem that comes after the first line is the stream's last line.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::{mpsc, oneshot};

use super::api::{Gone, Lines};
use crate::proto::Problem;

/// The verb's end of a stream.
pub(super) struct Channel {
    pub(super) lines: mpsc::Sender<Bytes>,
    /// Whether a line was sent.
    pub(super) began: Arc<AtomicBool>,
    pub(super) gone: Arc<AtomicBool>,
    pub(super) failed: Option<oneshot::Sender<Problem>>,
}

impl Channel {
    pub(super) fn fail(&mut self, problem: Problem) {
        let Some(failed) = self.failed.take() else {
            return;
        };
        // The receiver is dropped only with the body: then nobody is left to be told.
        let _ = failed.send(problem);
    }
}

impl Lines for Channel {
    fn send(&mut self, line: &[u8]) -> Result<(), Gone> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        self.began.store(true, Ordering::Release);
        // A client that takes nothing is cut off by `Patient`, which closes the channel.
        self.lines.blocking_send(Bytes::from(bytes)).map_err(|_| Gone)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || self.lines.is_closed()
    }
}

/// The client's end of a stream.
pub(super) struct LineBody {
    pub(super) received: mpsc::Receiver<Bytes>,
    pub(super) failure: oneshot::Receiver<Problem>,
    pub(super) gone: Arc<AtomicBool>,
}

impl hyper::body::Body for LineBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(line) = ready!(self.received.poll_recv(context)) {
            return Poll::Ready(Some(Ok(Frame::data(line))));
        }
        // All lines are out and the verb has ended: the problem, if any, is there already.
        let Ok(problem) = self.failure.try_recv() else { return Poll::Ready(None) };
        let line = serde_json::json!({"problem": problem});
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(format!("{line}\n"))))))
    }
}

impl Drop for LineBody {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}
