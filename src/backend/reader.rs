//! Whole small frames from a server; the length of each is checked before it is read.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::{ConnectError, Step, escape};
use crate::wire::frame::{BodyReader, Frame, next_frame_by};

const READ_SIZE: usize = 4096;

pub(super) struct FrameReader {
    buffer: BytesMut,
    step: Step,
}

impl FrameReader {
    pub(super) fn new(step: Step, leftover: &[u8]) -> Self {
        Self {
            buffer: BytesMut::from(leftover),
            step,
        }
    }

    /// The next frame; one whose length is over `limit(tag)` is refused at its header. Cancel safe:
    /// what was read stays in the buffer.
    pub(super) async fn next<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        limit: impl Fn(u8) -> usize,
    ) -> Result<Frame, ConnectError> {
        loop {
            match next_frame_by(&mut self.buffer, &limit) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => {
                    let seen = escape(&self.buffer, 64);
                    return Err(ConnectError::protocol(self.step, format!("{error} (\"{seen}\")")));
                }
            }
            self.buffer.reserve(READ_SIZE);
            // Not the whole spare capacity: after a frame of the limit's size that would be as much
            // again.
            let mut part = (&mut self.buffer).limit(READ_SIZE);
            let read = stream
                .read_buf(&mut part)
                .await
                .map_err(|error| ConnectError::io(self.step, error))?;
            if read == 0 {
                return Err(ConnectError::Closed { step: self.step });
            }
        }
    }

    /// Bytes read behind the last frame, in separate memory.
    pub(super) fn into_leftover(self) -> Bytes {
        Bytes::copy_from_slice(&self.buffer)
    }
}

/// The frame as it was received.
pub(super) fn verbatim(frame: &Frame) -> Bytes {
    let mut out = BytesMut::with_capacity(frame.body.len() + 5);
    out.put_u8(frame.tag);
    // A frame that was read is far below 4 GiB.
    out.put_u32(u32::try_from(frame.body.len() + 4).expect("frames have a limit"));
    out.put_slice(&frame.body);
    out.freeze()
}

pub(super) async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    bytes: &[u8],
    step: Step,
) -> Result<(), ConnectError> {
    let failed = |error| ConnectError::io(step, error);
    stream.write_all(bytes).await.map_err(failed)?;
    stream.flush().await.map_err(failed)
}

/// Splits `name NUL value NUL`, which must be all of it.
pub(super) fn parameter(body: &Bytes) -> Option<(Bytes, Bytes)> {
    let mut reader = BodyReader::new(body);
    let (name, value) = (reader.cstr().ok()?, reader.cstr().ok()?);
    reader.finish().ok()?;
    (!name.is_empty()).then(|| (body.slice_ref(name), body.slice_ref(value)))
}
