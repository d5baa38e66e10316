//! A model that is a hash of its tokens, with the runner's rules.

use std::collections::VecDeque;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use biplane_backend::{DType, Device, KvFormat, MemoryStats};
use biplane_models::{
    CacheSpec, Error, ModelInfo, ModelRunner, Result, SlotId, SpanOutput, SpanPlan, StepPlan, Want,
};

pub const VOCAB: usize = 512;
pub const STOP: u32 = 2;
pub const CONTEXT: usize = 2048;
pub const BYTES_PER_TOKEN: usize = 8;
/// Tokens that bring a step down.
pub const PANIC: u32 = 390;
pub const FAIL: u32 = 391;

/// Tokens before the window that can be gone back to.
const ROLLBACK: usize = 64;

/// What a test sees of the runner.
#[derive(Default)]
pub struct Watch {
    pub open: AtomicUsize,
    pub most_bytes: AtomicUsize,
    /// Steps started before the earlier one was looked at.
    pub ahead: AtomicUsize,
    /// Steps that the device may not have put away yet.
    pub under_way: AtomicUsize,
}

pub struct FakeRunner {
    info: ModelInfo,
    window: Option<usize>,
    /// Of a hundred guesses, as many are the model's own.
    right: u64,
    slots: Vec<Option<Vec<u32>>>,
    ids: Vec<SlotId>,
    /// Steps in flight: what they give, and of which sequences.
    pending: VecDeque<(Vec<SpanOutput>, Vec<SlotId>)>,
    /// Whether steps may be started before earlier ones are looked at.
    pub runs_ahead: bool,
    watch: Arc<Watch>,
}

impl FakeRunner {
    pub fn new(window: Option<usize>) -> (Self, Arc<Watch>) {
        Self::right(window, 100)
    }

    pub fn right(window: Option<usize>, right: u64) -> (Self, Arc<Watch>) {
        let watch = Arc::<Watch>::default();
        let runner = FakeRunner {
            info: ModelInfo {
                architecture: "fake".into(),
                backend: "fake",
                device: Device::Cpu,
                dtype: DType::F32,
                kv_format: KvFormat::Plain(DType::F32),
                vocab_size: VOCAB,
                hidden_size: 2,
                layers: 1,
                context_length: CONTEXT,
                parameters: 0,
                weight_bytes: 0,
                caches: vec![CacheSpec {
                    kv_heads: 1,
                    head_dim: 1,
                    window,
                }],
            },
            window,
            right,
            slots: Vec::new(),
            ids: Vec::new(),
            pending: VecDeque::new(),
            runs_ahead: true,
            watch: Arc::clone(&watch),
        };
        (runner, watch)
    }

    fn insert(&mut self, tokens: Vec<u32>) -> SlotId {
        self.watch.open.fetch_add(1, Relaxed);
        let index = match self.slots.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.slots.push(None);
                self.ids.push(SlotId::from_index(self.ids.len()));
                self.ids.len() - 1
            }
        };
        self.slots[index] = Some(tokens);
        self.ids[index]
    }

    fn index(&self, slot: SlotId) -> usize {
        self.ids.iter().position(|id| *id == slot).unwrap()
    }

    fn tokens(&self, slot: SlotId) -> &Vec<u32> {
        self.slots[self.index(slot)].as_ref().expect("an open slot")
    }

    fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let mut hash = tokens.iter().fold(7u64, |h, t| {
            (h ^ u64::from(*t))
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(23)
        });
        if hash % 100 >= self.right {
            hash = hash.wrapping_add(1 << 40);
        }
        let mut logits = vec![0.0; VOCAB];
        for i in 0..6 {
            hash = hash
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            logits[(hash >> 33) as usize % 380 + 3] = 8.0 - i as f32 * 0.5;
        }
        // An end now and then.
        if hash % 61 == 0 {
            logits[STOP as usize] = 9.0;
        }
        logits
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len())
        .rev()
        .max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    best.unwrap() as u32
}

impl ModelRunner for FakeRunner {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn open(&mut self) -> Result<SlotId> {
        Ok(self.insert(Vec::new()))
    }

    fn close(&mut self, slot: SlotId) {
        let index = self.index(slot);
        if self.slots[index].take().is_some() {
            self.watch.open.fetch_sub(1, Relaxed);
        }
    }

    fn len(&self, slot: SlotId) -> usize {
        self.tokens(slot).len()
    }

    fn bytes(&self, slot: SlotId, added: usize) -> usize {
        (self.tokens(slot).len() + added) * BYTES_PER_TOKEN
    }

    fn can_go_back_to(&self, slot: SlotId, len: usize) -> bool {
        let held = self.tokens(slot).len();
        match self.window {
            Some(window) if held > window => len + ROLLBACK >= held,
            _ => true,
        }
    }

    fn truncate(&mut self, slot: SlotId, len: usize) -> Result<()> {
        assert!(self.can_go_back_to(slot, len));
        let index = self.index(slot);
        self.slots[index].as_mut().unwrap().truncate(len);
        Ok(())
    }

    fn fork(&mut self, slot: SlotId, len: usize) -> Result<SlotId> {
        assert!(self.can_go_back_to(slot, len));
        let tokens = self.tokens(slot)[..len].to_vec();
        Ok(self.insert(tokens))
    }

    fn export(&mut self, slot: SlotId) -> Result<Vec<u8>> {
        Ok(self
            .tokens(slot)
            .iter()
            .flat_map(|t| t.to_le_bytes())
            .collect())
    }

    fn import(&mut self, bytes: &[u8], len: usize) -> Result<SlotId> {
        let tokens: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(tokens.len(), len);
        Ok(self.insert(tokens))
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        assert!(self.pending.is_empty(), "a step is in flight");
        self.begin(plan)
    }

    fn launch_next(&mut self) -> Result<bool> {
        let [(outputs, slots)] = self.pending.make_contiguous() else {
            return Ok(false);
        };
        let spans = slots
            .iter()
            .zip(outputs)
            .map(|(slot, output)| match output {
                SpanOutput::Token(token) => Some(SpanPlan {
                    slot: *slot,
                    tokens: vec![*token],
                    want: Want::Argmax,
                }),
                _ => None,
            });
        let Some(spans) = spans.collect::<Option<Vec<_>>>() else {
            return Ok(false);
        };
        if !self.runs_ahead || spans.iter().any(|s| self.len(s.slot) == CONTEXT) {
            return Ok(false);
        }
        self.watch.ahead.fetch_add(1, Relaxed);
        self.begin(&StepPlan { spans })?;
        Ok(true)
    }

    fn collect(&mut self) -> Result<Vec<SpanOutput>> {
        match self.pending.pop_front() {
            Some((outputs, _)) => Ok(outputs),
            None => Err(Error::Request("no step is in flight".into())),
        }
    }

    fn synchronize(&mut self) -> Result<()> {
        self.watch.under_way.store(0, Relaxed);
        Ok(())
    }

    fn memory(&self) -> MemoryStats {
        MemoryStats::default()
    }
}

impl FakeRunner {
    fn begin(&mut self, plan: &StepPlan) -> Result<()> {
        self.watch.under_way.fetch_add(1, Relaxed);
        let mut outputs = Vec::new();
        for span in &plan.spans {
            assert!(!span.tokens.is_empty());
            assert!(!span.tokens.contains(&PANIC), "a trap");
            if span.tokens.contains(&FAIL) {
                return Err(Error::Request("a trap".into()));
            }
        }
        for span in &plan.spans {
            let index = self.index(span.slot);
            let mut held = self.slots[index].take().expect("an open slot");
            assert!(held.len() + span.tokens.len() <= CONTEXT);
            let mut all = Vec::new();
            for token in &span.tokens {
                held.push(*token);
                all.extend(self.logits(&held));
            }
            let last = all[all.len() - VOCAB..].to_vec();
            outputs.push(match span.want {
                Want::Nothing => SpanOutput::Nothing,
                Want::Argmax => SpanOutput::Token(argmax(&last)),
                Want::LastLogits => SpanOutput::Logits(last),
                Want::AllLogits => SpanOutput::Logits(all),
                Want::Hidden => {
                    SpanOutput::Hidden(span.tokens.iter().flat_map(|t| [*t as f32, 1.0]).collect())
                }
            });
            self.slots[index] = Some(held);
        }
        let bytes: usize = self
            .slots
            .iter()
            .flatten()
            .map(|t| t.len() * BYTES_PER_TOKEN)
            .sum();
        self.watch.most_bytes.fetch_max(bytes, Relaxed);
        let slots = plan.spans.iter().map(|span| span.slot).collect();
        self.pending.push_back((outputs, slots));
        Ok(())
    }
}
