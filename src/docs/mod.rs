//! The system explained, one page per question. For readers; nothing here is compiled into anything.
//!
//! Owns: prose that belongs to no single module. What one module does is said in that module.
//!
//! Start with [`architecture`]; words are in the [`glossary`].

/// How the parts fit together.
#[doc = include_str!("architecture.md")]
pub mod architecture {}

/// What survives what.
#[doc = include_str!("durability.md")]
pub mod durability {}

/// What lies on a target, byte for byte, for people.
#[doc = include_str!("on_target.md")]
pub mod on_target {}

/// What happens when something fails.
#[doc = include_str!("failure_modes.md")]
pub mod failure_modes {}

/// What is tested how.
#[doc = include_str!("testing.md")]
pub mod testing {}

/// One word per thing.
#[doc = include_str!("glossary.md")]
pub mod glossary {}

/// Why things are as they are: one page per decision.
pub mod decisions {
    #[doc = include_str!("decisions/slots.md")]
    pub mod slots {}

    #[doc = include_str!("decisions/chunks.md")]
    pub mod chunks {}

    #[doc = include_str!("decisions/layers.md")]
    pub mod layers {}

    #[doc = include_str!("decisions/sqlite.md")]
    pub mod sqlite {}

    #[doc = include_str!("decisions/bursts.md")]
    pub mod bursts {}

    #[doc = include_str!("decisions/journal_encodings.md")]
    pub mod journal_encodings {}

    #[doc = include_str!("decisions/format_1.md")]
    pub mod format_1 {}

    #[doc = include_str!("decisions/directory_store.md")]
    pub mod directory_store {}

    #[doc = include_str!("decisions/aside.md")]
    pub mod aside {}

    #[doc = include_str!("decisions/parts_of_chunks.md")]
    pub mod parts_of_chunks {}

    #[doc = include_str!("decisions/retries.md")]
    pub mod retries {}

    #[doc = include_str!("decisions/conflicts.md")]
    pub mod conflicts {}

    #[doc = include_str!("decisions/checkpoints.md")]
    pub mod checkpoints {}

    #[doc = include_str!("decisions/sessions.md")]
    pub mod sessions {}

    #[doc = include_str!("decisions/references.md")]
    pub mod references {}

    #[doc = include_str!("decisions/live_targets.md")]
    pub mod live_targets {}

    #[doc = include_str!("decisions/gc.md")]
    pub mod gc {}

    #[doc = include_str!("decisions/compaction.md")]
    pub mod compaction {}

    #[doc = include_str!("decisions/zeros.md")]
    pub mod zeros {}

    #[doc = include_str!("decisions/acknowledgement.md")]
    pub mod acknowledgement {}

    #[doc = include_str!("decisions/passthrough.md")]
    pub mod passthrough {}
}
