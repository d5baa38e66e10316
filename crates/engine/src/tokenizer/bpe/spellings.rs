use super::table::Table;

/// The spellings of all tokens in one run, by id and back.
#[derive(Clone, Debug)]
pub(super) struct Spellings {
    text: String,
    /// Where each token's spelling ends; it begins where the one before it ends.
    ends: Vec<u32>,
    ids: Table,
    longest: usize,
}

impl Spellings {
    /// Tokens in the order of their ids, `None` for an id without one. Of two tokens spelled alike, only
    /// the first is found.
    pub fn new<'t>(tokens: impl Iterator<Item = Option<&'t str>> + Clone) -> Result<Self, String> {
        let bytes = tokens.clone().flatten().map(str::len).sum::<usize>();
        let count = tokens.clone().count();
        if u32::try_from(bytes.max(count)).is_err() {
            return Err(format!("{count} tokens of {bytes} bytes"));
        }
        let mut all = Spellings {
            text: String::with_capacity(bytes),
            ends: Vec::with_capacity(count),
            ids: Table::with_room(count),
            longest: 0,
        };
        for (id, token) in (0..).zip(tokens) {
            all.text.push_str(token.unwrap_or_default());
            all.ends.push(all.text.len() as u32);
            let Some(token) = token else { continue };
            all.longest = all.longest.max(token.len());
            let (text, ends) = (&all.text, &all.ends);
            all.ids
                .insert(id, token, |id| spelling(text, ends, id) == token);
        }
        Ok(all)
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Number of tokens with different spellings.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        if token.len() > self.longest {
            return None;
        }
        self.ids.find(token, |id| self.of(id) == token)
    }

    /// A token's spelling; nothing for an id without one.
    pub fn of(&self, id: u32) -> &str {
        spelling(&self.text, &self.ends, id)
    }

    /// Tokens that are found by their spelling, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..self.ends.len() as u32)
            .map(|id| (id, self.of(id)))
            .filter(|&(id, token)| self.id(token) == Some(id))
    }
}

fn spelling<'t>(text: &'t str, ends: &[u32], id: u32) -> &'t str {
    let id = id as usize;
    let end = |id: usize| ends.get(id).map_or(text.len(), |&end| end as usize);
    let start = id.checked_sub(1).map_or(0, end);
    text.get(start..end(id)).unwrap_or_default()
}
