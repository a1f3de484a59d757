//! Counter-based random numbers: the same key and counter give the same bits on every machine and in any order, so
//! that masks can be made again in the backward pass instead of being kept, and a resumed run goes on exactly.
//!
//! Philox 4×32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

/// Four random 32-bit words for a 64-bit key and a 128-bit counter.
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut key = [key as u32, (key >> 32) as u32];
    let mut c = counter;
    for _ in 0..10 {
        let p0 = MULTIPLIERS[0] * u64::from(c[0]);
        let p1 = MULTIPLIERS[1] * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A stream of random words for one purpose (a layer's dropout, a tensor's rounding) at one step.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: u64,
    purpose: u32,
    step: u32,
}

impl Stream {
    /// The stream of `purpose` at `step` under the run's `seed`.
    pub fn new(seed: u64, step: u64, purpose: u32) -> Self {
        // The step's high bits go into the key: runs of more than 2^32 steps still never repeat a counter.
        Self { key: seed ^ (step >> 32).rotate_left(32), purpose, step: step as u32 }
    }

    /// The four words for elements `4 * index .. 4 * index + 4`.
    pub fn words(&self, index: u64) -> [u32; 4] {
        philox(self.key, [index as u32, (index >> 32) as u32, self.purpose, self.step])
    }
}

/// A sequence of random numbers from one key, for initial weights and sampling.
#[derive(Clone, Debug)]
pub struct Random {
    stream: Stream,
    index: u64,
    words: [u32; 4],
    left: usize,
}

impl Random {
    /// The sequence of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: u32) -> Self {
        Self { stream: Stream::new(seed, 0, purpose), index: 0, words: [0; 4], left: 0 }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.left == 0 {
            self.words = self.stream.words(self.index);
            self.index += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.words[3 - self.left]
    }

    /// A uniform number in `[0, 1)`.
    pub fn uniform(&mut self) -> f32 {
        unit(self.next_u32())
    }

    /// A standard normal number (Box and Muller 1958).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - f64::from(self.uniform())).ln()).sqrt();
        (radius * (std::f64::consts::TAU * f64::from(self.uniform())).cos()) as f32
    }
}

/// A word as a number in `[0, 1)`, with the 24 bits that an `f32` can hold.
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers from the Random123 distribution (kat_vectors, philox4x32 10).
        assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let key = u64::from(0xa409_3822_u32) | u64::from(0x299f_31d0_u32) << 32;
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(key, counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let mut random = Random::new(7, 1);
        let numbers: Vec<f64> = (0..20_000).map(|_| f64::from(random.normal())).collect();
        let mean = numbers.iter().sum::<f64>() / 20_000.0;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.05, "variance {variance}");
    }
}
