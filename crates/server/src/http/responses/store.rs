//! Responses that are kept in memory: to be read again, and to be continued by `previous_response_id`.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use biplane::Message;
use serde_json::Value;

use crate::http::{error::ApiError, limits};

/// The latest responses; the oldest go when there are too many.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    kept: HashMap<String, Kept>,
    /// Their names, the oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

/// A response, and the conversation that it ended.
struct Kept {
    response: Value,
    messages: Vec<Message>,
    bytes: usize,
}

impl Store {
    /// Keeps a response by its name, with the conversation, its answer included.
    pub fn keep(&self, id: &str, messages: Vec<Message>, response: Value) {
        let bytes = messages.iter().map(size).sum::<usize>() + id.len();
        let bytes = bytes + response.to_string().len();
        let mut all = self.all();
        all.bytes += bytes;
        all.order.push_back(id.to_owned());
        let kept = Kept {
            response,
            messages,
            bytes,
        };
        all.kept.insert(id.to_owned(), kept);
        while all.bytes > limits::KEPT_BYTES || all.order.len() > limits::KEPT {
            let Some(oldest) = all.order.pop_front() else {
                break;
            };
            let gone = all.kept.remove(&oldest);
            all.bytes -= gone.map_or(0, |gone| gone.bytes);
        }
    }

    /// The conversation that ended with a response.
    pub fn find(&self, id: &str) -> Result<Vec<Message>, ApiError> {
        let found = self.all().kept.get(id).map(|kept| kept.messages.clone());
        found.ok_or_else(|| {
            let message = format!("{}. Send the whole conversation as input", absent(id));
            ApiError::field("previous_response_id", message)
                .with_code("previous_response_not_found")
        })
    }

    /// A response as it was given.
    pub fn response(&self, id: &str) -> Option<Value> {
        self.all().kept.get(id).map(|kept| kept.response.clone())
    }

    /// Forgets a response; whether there was one.
    pub fn remove(&self, id: &str) -> bool {
        let mut all = self.all();
        let gone = all.kept.remove(id);
        if let Some(gone) = &gone {
            all.bytes -= gone.bytes;
            all.order.retain(|other| other != id);
        }
        gone.is_some()
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no response of a name.
pub fn absent(id: &str) -> String {
    format!(
        "there is no response {id:?}; the latest {} are kept while the server runs, except where store \
         is false",
        limits::KEPT
    )
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
            store.keep(&i.to_string(), said(i), i.into());
        }
        assert!(store.find("0").is_err());
        assert!(store.find("1").is_err());
        assert_eq!(store.response("1"), None);
        assert_eq!(store.find("2").unwrap(), said(2));
        assert_eq!(store.response("2"), Some(2.into()));
        let error = store.find("never").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("previous_response_id"));
    }

    #[test]
    fn what_is_removed_is_gone() {
        let store = Store::default();
        for id in ["a", "b"] {
            store.keep(id, vec![Message::new("user", id)], id.into());
        }
        assert!(store.remove("a"));
        assert!(!store.remove("a"));
        assert!(store.find("a").is_err() && store.find("b").is_ok());
        assert!(store.remove("b"));
        let all = store.0.lock().unwrap();
        assert_eq!((all.bytes, all.order.len()), (0, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let store = Store::default();
        let long = vec![Message::new("user", "x".repeat(limits::KEPT_BYTES / 3))];
        for id in ["a", "b", "c"] {
            store.keep(id, long.clone(), Value::Null);
        }
        assert!(store.find("a").is_err());
        assert!(store.find("b").is_ok() && store.find("c").is_ok());
        let response = Value::from("x".repeat(limits::KEPT_BYTES));
        store.keep("d", Vec::new(), response);
        assert!(store.find("d").is_err());
        assert_eq!(store.0.lock().unwrap().bytes, 0);
    }
}
