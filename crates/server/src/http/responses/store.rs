//! Conversations that later requests continue by `previous_response_id`, in memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use biplane::Message;

use crate::http::{error::ApiError, limits};

/// The conversations of the latest responses; the oldest go when there are too many.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    conversations: HashMap<String, (Vec<Message>, usize)>,
    /// Their names, the oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

impl Store {
    /// Keeps a conversation, its answer included, by the response's name.
    pub fn keep(&self, id: &str, messages: Vec<Message>) {
        let size = messages.iter().map(size).sum::<usize>() + id.len();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += size;
        kept.order.push_back(id.to_owned());
        kept.conversations.insert(id.to_owned(), (messages, size));
        while kept.bytes > limits::KEPT_BYTES || kept.order.len() > limits::KEPT {
            let Some(oldest) = kept.order.pop_front() else {
                break;
            };
            let gone = kept.conversations.remove(&oldest);
            kept.bytes -= gone.map_or(0, |(_, size)| size);
        }
    }

    /// The conversation that ended with a response.
    pub fn find(&self, id: &str) -> Result<Vec<Message>, ApiError> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.conversations.get(id).map(|(m, _)| m.clone());
        found.ok_or_else(|| {
            let message = format!(
                "there is no response {id:?}; the latest {} are kept while the server runs, except \
                 where store is false. Send the whole conversation as input",
                limits::KEPT
            );
            ApiError::field("previous_response_id", message)
                .with_code("previous_response_not_found")
        })
    }
}

/// About what a message takes.
fn size(message: &Message) -> usize {
    let text = serde_json::to_string(message);
    size_of::<Message>() + text.map_or(0, |text| text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let store = Store::default();
        let said = |i: usize| vec![Message::new("user", i.to_string())];
        for i in 0..limits::KEPT + 2 {
            store.keep(&i.to_string(), said(i));
        }
        assert!(store.find("0").is_err());
        assert!(store.find("1").is_err());
        assert_eq!(store.find("2").unwrap(), said(2));
        let error = store.find("never").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("previous_response_id"));
    }

    #[test]
    fn memory_is_bounded() {
        let store = Store::default();
        let long = vec![Message::new("user", "x".repeat(limits::KEPT_BYTES / 3))];
        for id in ["a", "b", "c"] {
            store.keep(id, long.clone());
        }
        assert!(store.find("a").is_err());
        assert!(store.find("b").is_ok() && store.find("c").is_ok());
        let huge = vec![Message::new("user", "x".repeat(limits::KEPT_BYTES))];
        store.keep("d", huge);
        assert!(store.find("d").is_err());
        assert_eq!(store.0.lock().unwrap().bytes, 0);
    }
}
