//! Computing recorded requests again.

use crate::{Model, Recorded, Response, Result};

/// What a recorded request gave now.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The answer.
    pub response: Response,
    /// The first place where its tokens are other ones than then.
    pub parts_at: Option<usize>,
    /// Whether it is the same byte for byte.
    pub same: bool,
}

/// Computes a recorded request again, with its seed and settings.
///
/// # Errors
/// Whatever the request fails with.
pub async fn replay(model: &Model, recorded: &Recorded) -> Result<Replayed> {
    let response = model.complete(recorded.request.clone()).await?;
    let (now, then) = (&response.tokens, &recorded.tokens);
    let shared = now.iter().zip(then).take_while(|(a, b)| a == b).count();
    let parts = shared < now.len().max(then.len());
    Ok(Replayed {
        parts_at: parts.then_some(shared),
        same: !parts && response.text == recorded.text,
        response,
    })
}
