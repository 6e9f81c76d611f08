//! The only source of randomness.
//!
//! Owns: drawing from the operating system; in a simulated world, from its seed, so that the world can be lived again.
//! Does not own: what is drawn for. Pure modules take what was drawn as a parameter.

/// Draws 64 bits.
pub fn u64() -> u64 {
    #[cfg(test)]
    if let Some(drawn) = simulated::draw() {
        return drawn;
    }
    getrandom::u64().expect("the operating system has a random source")
}

/// Draws 32 bits.
pub fn u32() -> u32 {
    u64() as u32
}

/// Draws the id of something that shall never be mistaken for another.
pub fn uuid() -> uuid::Uuid {
    uuid::Builder::from_random_bytes((u128::from(u64()) << 64 | u128::from(u64())).to_le_bytes()).into_uuid()
}

/// A generator that looks random and starts from a seed: SplitMix64.
#[derive(Debug, Clone)]
pub struct Seeded(pub u64);

impl Seeded {
    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.below_u64(bound as u64) as usize
    }

    /// A number of 64 bits below `bound`.
    pub fn below_u64(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

/// Randomness of a simulated world: everything that this thread draws comes from the seed.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::RefCell;

    use super::Seeded;

    thread_local! {
        static SEEDED: RefCell<Option<Seeded>> = const { RefCell::new(None) };
    }

    /// From now on this thread draws from `seed`; `None`: from the operating system again.
    pub(crate) fn seed(seed: Option<u64>) {
        SEEDED.set(seed.map(Seeded));
    }

    pub(super) fn draw() -> Option<u64> {
        SEEDED.with_borrow_mut(|seeded| seeded.as_mut().map(Seeded::draw))
    }
}
