//! Attention on the card against attention in f64 on the CPU, and its speed.
//!
//!     cargo run --release -p liftplan-engine --example cuda_attention [check|time]
//!
//! Every output is filled with NaN before; each case runs twice and must give the same bits. The bounds are those of
//! bf16: 8e-3 of an output's norm (a right kernel reaches 2e-3 to 3e-3).
#![allow(clippy::unwrap_used, missing_docs)]

#[cfg(not(feature = "cuda"))]
fn main() {}

#[cfg(feature = "cuda")]
fn main() {
    let what = std::env::args().nth(1);
    let context = liftplan_engine::cuda::Context::new(0).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    let mut failed = 0;
    if what.as_deref() != Some("time") {
        failed = cuda::check(&context);
    }
    if what.as_deref() != Some("check") {
        cuda::time(&context);
    }
    std::process::exit(i32::from(failed > 0));
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::time::Instant;

    use half::bf16;
    use liftplan_engine::cuda::attention::{self, Documents, Kept, Shape};
    use liftplan_engine::cuda::{Buffer, Context, View};
    use rayon::prelude::*;

    const BOUND: f64 = 8e-3;

    /// Numbers about as wide as a normal distribution's, the same on every machine.
    fn random(count: usize, seed: u64) -> Vec<bf16> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u64 << 24) as f32
        };
        (0..count).map(|_| bf16::from_f32((next() + next() + next() + next() - 2.0) * 1.73)).collect()
    }

    /// Everything an attention layer works on.
    struct Layer {
        context: Context,
        shape: Shape,
        documents: Documents,
        _words: Buffer,
        buffers: [Buffer; 6],
    }

    impl Layer {
        fn new(context: &Context, shape: Shape, lengths: &[usize]) -> Self {
            let mut starts = vec![0_u32];
            starts.extend(lengths.iter().scan(0, |at, length| {
                *at += *length as u32;
                Some(*at)
            }));
            let (words, documents) = Documents::upload(context, starts).unwrap();
            let (tokens, width) = (documents.tokens(), (shape.heads + 2 * shape.kv_heads) * shape.dim);
            let out = tokens * shape.heads * shape.dim * 2;
            let sizes = [
                tokens * width * 2,
                out,
                tokens * shape.heads * 4,
                out,
                tokens * width * 2,
                attention::workspace_bytes(context, &shape, &documents),
            ];
            let buffers = sizes.map(|bytes| Buffer::new(context, bytes).unwrap());
            Self { context: context.clone(), shape, documents, _words: words, buffers }
        }

        fn width(&self) -> usize {
            (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.dim
        }

        fn wide(&self, buffer: usize) -> View<bf16> {
            self.buffers[buffer].view(self.documents.tokens(), self.width())
        }

        fn narrow(&self, buffer: usize) -> View<bf16> {
            self.buffers[buffer].view(self.documents.tokens(), self.shape.heads * self.shape.dim)
        }

        fn lse(&self) -> View<f32> {
            self.buffers[2].view(self.shape.heads, self.documents.tokens())
        }

        fn poison(&self) {
            for buffer in [1, 2, 4, 5] {
                let bytes = self.buffers[buffer].bytes();
                self.context.fill_bytes::<u8>(self.buffers[buffer].view(1, bytes), 0xff).unwrap();
            }
        }

        fn kept(&self) -> Kept {
            Kept { qkv: self.wide(0), out: self.narrow(1), lse: self.lse() }
        }

        fn forward(&self) {
            attention::forward(&self.context, &self.shape, &self.documents, self.kept()).unwrap();
        }

        fn backward(&self) {
            let workspace = self.buffers[5].view::<u8>(1, self.buffers[5].bytes());
            let gradients = [self.narrow(3), self.wide(4)];
            attention::backward(&self.context, &self.shape, &self.documents, self.kept(), gradients, workspace)
                .unwrap();
        }
    }

    /// out, lse and the gradient of qkv, in f64.
    fn reference(shape: &Shape, starts: &[u32], qkv: &[bf16], d_out: &[bf16]) -> [Vec<f64>; 3] {
        let Shape { heads, kv_heads, dim, window, scale, .. } = *shape;
        let (tokens, width) = (starts[starts.len() - 1] as usize, (heads + 2 * kv_heads) * dim);
        let at = |row: usize, column: usize| -> Vec<f64> {
            qkv[row * width + column * dim..][..dim].iter().map(|x| x.to_f64()).collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let parts: Vec<_> = (0..heads)
            .into_par_iter()
            .map(|head| {
                let kv = head / (heads / kv_heads);
                let q: Vec<_> = (0..tokens).map(|row| at(row, head)).collect();
                let k: Vec<_> = (0..tokens).map(|row| at(row, heads + kv)).collect();
                let v: Vec<_> = (0..tokens).map(|row| at(row, heads + kv_heads + kv)).collect();
                let zeros = || vec![vec![0.0; dim]; tokens];
                let (mut out, mut lse, mut dq, mut dk, mut dv) =
                    (zeros(), vec![0.0; tokens], zeros(), zeros(), zeros());
                for pair in starts.windows(2) {
                    for i in pair[0] as usize..pair[1] as usize {
                        let first = (i + 1).saturating_sub(window.unwrap_or(usize::MAX)).max(pair[0] as usize);
                        let scores: Vec<f64> = (first..=i).map(|j| dot(&q[i], &k[j]) * f64::from(scale)).collect();
                        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        lse[i] = most + scores.iter().map(|s| (s - most).exp()).sum::<f64>().ln();
                        let p: Vec<f64> = scores.iter().map(|s| (s - lse[i]).exp()).collect();
                        let g: Vec<f64> = d_out[(i * heads + head) * dim..][..dim].iter().map(|x| x.to_f64()).collect();
                        for (p, j) in p.iter().zip(first..) {
                            for c in 0..dim {
                                out[i][c] += p * v[j][c];
                                dv[j][c] += p * g[c];
                            }
                        }
                        let along = dot(&out[i], &g);
                        for (p, j) in p.iter().zip(first..) {
                            let ds = p * (dot(&g, &v[j]) - along) * f64::from(scale);
                            for c in 0..dim {
                                dq[i][c] += ds * k[j][c];
                                dk[j][c] += ds * q[i][c];
                            }
                        }
                    }
                }
                (out, lse, dq, dk, dv)
            })
            .collect();
        let mut all = [vec![0.0; tokens * heads * dim], vec![0.0; heads * tokens], vec![0.0; tokens * width]];
        for (head, (out, lse, dq, dk, dv)) in parts.into_iter().enumerate() {
            let kv = head / (heads / kv_heads);
            for pair in starts.windows(2) {
                let [start, end] = [pair[0] as usize, pair[1] as usize];
                let place = start * heads + head * (end - start);
                all[1][place..place + end - start].copy_from_slice(&lse[start..end]);
            }
            for row in 0..tokens {
                for c in 0..dim {
                    all[0][(row * heads + head) * dim + c] = out[row][c];
                    all[2][row * width + head * dim + c] = dq[row][c];
                    all[2][row * width + (heads + kv) * dim + c] += dk[row][c];
                    all[2][row * width + (heads + kv_heads + kv) * dim + c] += dv[row][c];
                }
            }
        }
        all
    }

    /// ‖found − expected‖ / ‖expected‖; NaN where one number was not written.
    fn distance(found: impl Iterator<Item = f64>, expected: impl Iterator<Item = f64>) -> f64 {
        let (mut off, mut norm) = (0.0, 0.0);
        for (found, expected) in found.zip(expected) {
            off += (found - expected).powi(2);
            norm += expected.powi(2);
        }
        (off / f64::max(norm, 1.0)).sqrt()
    }

    fn way(layer: &Layer) -> &'static str {
        let once = attention::in_one_pass(&layer.context, &layer.shape, &layer.documents);
        match (layer.context.fuses(), layer.shape.unordered) {
            (false, _) if once => "own, in one pass",
            (false, _) => "own",
            (true, false) => "ordered",
            (true, true) => "unordered",
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn case(
        context: &Context,
        dim: usize,
        heads: usize,
        kv_heads: usize,
        window: Option<usize>,
        lengths: &[usize],
        unordered: bool,
    ) -> bool {
        let shape = Shape { heads, kv_heads, dim, window, scale: 1.0 / (dim as f32).sqrt(), unordered };
        let layer = Layer::new(context, shape, lengths);
        let (tokens, width) = (layer.documents.tokens(), layer.width());
        let qkv = random(tokens * width, 1 + dim as u64);
        let d_out = random(tokens * heads * dim, 2 + tokens as u64);
        context.upload(layer.wide(0), &qkv).unwrap();
        context.upload(layer.narrow(3), &d_out).unwrap();
        let mut runs = (0..2).map(|_| {
            layer.poison();
            layer.forward();
            layer.backward();
            let bits = |x: Vec<bf16>| x.into_iter().map(bf16::to_bits).collect::<Vec<_>>();
            let lse = context.download(layer.lse()).unwrap();
            let (out, grad) = (context.download(layer.narrow(1)).unwrap(), context.download(layer.wide(4)).unwrap());
            (bits(out), lse.into_iter().map(f32::to_bits).collect::<Vec<_>>(), bits(grad))
        });
        let (first, second) = (runs.next().unwrap(), runs.next().unwrap());
        let expected = reference(&shape, &layer.documents.host, &qkv, &d_out);
        let number = |x: &u16| bf16::from_bits(*x).to_f64();
        let columns = |range: std::ops::Range<usize>| {
            let keep = move |i: &usize| range.contains(&(i % width));
            let found = (0..tokens * width).filter(keep.clone()).map(|i| number(&first.2[i]));
            distance(found, (0..tokens * width).filter(keep).map(|i| expected[2][i]))
        };
        let (queries, keys) = (heads * dim, (heads + kv_heads) * dim);
        let errors = [
            distance(first.0.iter().map(number), expected[0].iter().copied()),
            distance(first.1.iter().map(|&x| f64::from(f32::from_bits(x))), expected[1].iter().copied()),
            columns(0..queries),
            columns(queries..keys),
            columns(keys..width),
        ];
        // Generation: the last document's last two queries against its keys.
        let last = layer.documents.host.windows(2).last().unwrap().to_vec();
        let (start, rows) = (last[0] as usize, (last[1] - last[0]) as usize);
        let new = rows.min(2);
        let document = layer.wide(0).slice_rows(start, rows);
        let decoded = Buffer::new(context, new * queries * 2).unwrap();
        let cache = [document.slice_cols(queries, kv_heads * dim), document.slice_cols(keys, kv_heads * dim)];
        let parts = attention::decode_parts_len(context, &shape, new, rows - new);
        let between = Buffer::new(context, parts.max(1) * 4).unwrap();
        let q = document.slice_rows(rows - new, new).slice_cols(0, queries);
        attention::decode(context, &shape, q, cache, rows - new, decoded.view(new, queries), between.view(1, parts))
            .unwrap();
        let found = context.download(decoded.view::<bf16>(new, queries)).unwrap();
        let decode =
            distance(found.iter().map(|x| x.to_f64()), expected[0][(tokens - new) * queries..].iter().copied());
        // cuDNN's additions into dQ have no order; all else has.
        let queries_of = |grad: &[u16]| -> Vec<u16> {
            grad.chunks(width).flat_map(|row| if unordered { &row[queries..] } else { row }.iter().copied()).collect()
        };
        let same = first.0 == second.0 && first.1 == second.1 && queries_of(&first.2) == queries_of(&second.2);
        let right = errors.iter().chain([&decode]).all(|error| *error < BOUND) && same;
        println!(
            "{} {} dim {dim} heads {heads}/{kv_heads} window {window:?} documents {lengths:?}: out {:.1e} lse {:.1e} dq {:.1e} dk {:.1e} dv {:.1e} decode {decode:.1e} {}",
            if right { "ok  " } else { "FAIL" },
            way(&layer),
            errors[0],
            errors[1],
            errors[2],
            errors[3],
            errors[4],
            if same { "same bits" } else { "DIFFERENT BITS" },
        );
        right
    }

    pub(super) fn check(context: &Context) -> usize {
        let ragged = [1, 2, 17, 64, 65, 127, 300, 1, 193];
        let mut failed = 0;
        for dim in [8, 16, 40, 64, 80, 96, 112, 128, 256] {
            for (heads, kv_heads, window, lengths) in [
                (2, 2, None, &[128][..]),
                (4, 1, None, &ragged[..]),
                (8, 1, None, &[65, 130][..]),
                (6, 2, Some(100), &[500, 3, 213][..]),
                (3, 1, Some(64), &[300, 64][..]),
                (2, 1, Some(1), &[77][..]),
                (5, 1, None, &[1000][..]),
            ] {
                failed += usize::from(!case(context, dim, heads, kv_heads, window, lengths, false));
            }
        }
        // The backward pass in one, which takes more work than the cases above have.
        let fuses = context.fuses();
        context.set_fuses(false);
        let many = [1, 2, 17, 64, 65, 127, 300, 1, 193, 128, 130, 77].repeat(11);
        for dim in [80, 96, 128] {
            for (heads, kv_heads, window, lengths) in [
                (8, 2, None, &many[..60]),
                (6, 2, Some(100), &many[..72]),
                (4, 4, Some(64), &many[..48]),
                (3, 1, Some(1), &many[..]),
                (16, 2, None, &many[..]),
                (16, 4, None, &[1000; 4]),
                (8, 4, Some(300), &[2000, 900, 1500, 1000]),
            ] {
                failed += usize::from(!case(context, dim, heads, kv_heads, window, lengths, false));
            }
        }
        // What cuDNN serves, with and without it.
        for dim in [64, 80, 96, 128] {
            for (heads, kv_heads, lengths) in
                [(4, 4, &[256, 256][..]), (4, 1, &[512][..]), (6, 2, &[256, 256, 256][..]), (2, 1, &[1024][..])]
            {
                for (fused, unordered) in [(false, false), (fuses, false), (fuses, true)] {
                    context.set_fuses(fused);
                    failed += usize::from(!case(context, dim, heads, kv_heads, None, lengths, unordered));
                }
            }
        }
        println!("{failed} failed");
        failed
    }

    pub(super) fn time(context: &Context) {
        println!(
            "{}: milliseconds, and TFLOP/s over the visible half (forward 4, backward 10 operations a number)",
            context.name()
        );
        let fuses = context.fuses();
        for (dim, heads, kv_heads, documents, length) in [
            (128, 32, 8, 4, 2048),
            (128, 32, 8, 1, 2048),
            (128, 32, 8, 4, 4096),
            (128, 32, 8, 1, 512),
            (128, 32, 8, 1, 16384),
            (64, 32, 8, 4, 2048),
            (80, 32, 8, 4, 2048),
            (96, 32, 8, 4, 2048),
            (256, 16, 8, 4, 2048),
        ] {
            for (fused, unordered) in [(false, false), (fuses, false), (fuses, true)] {
                context.set_fuses(fused);
                let shape = Shape { heads, kv_heads, dim, window: None, scale: 1.0 / (dim as f32).sqrt(), unordered };
                let layer = Layer::new(context, shape, &vec![length; documents]);
                context.upload(layer.wide(0), &random(layer.documents.tokens() * layer.width(), 3)).unwrap();
                context.upload(layer.narrow(3), &random(layer.documents.tokens() * heads * dim, 4)).unwrap();
                let mut seconds = [0.0; 2];
                let mut backward = || layer.backward();
                let mut forward = || layer.forward();
                for (seconds, work) in seconds.iter_mut().zip([&mut forward as &mut dyn FnMut(), &mut backward]) {
                    work();
                    context.synchronize().unwrap();
                    let mut times: Vec<f64> = (0..5)
                        .map(|_| {
                            let start = Instant::now();
                            (0..10).for_each(|_| work());
                            context.synchronize().unwrap();
                            start.elapsed().as_secs_f64() / 10.0
                        })
                        .collect();
                    times.sort_by(f64::total_cmp);
                    *seconds = times[2];
                }
                let operations = (documents * heads * length * length * dim) as f64 * 2.0 / 1e12;
                println!(
                    "{} dim {dim} heads {heads}/{kv_heads} {documents}×{length}: forward {:.3} ms {:.0}, backward {:.3} ms {:.0}, both {:.0} TFLOP/s",
                    way(&layer),
                    seconds[0] * 1e3,
                    operations / seconds[0],
                    seconds[1] * 1e3,
                    2.5 * operations / seconds[1],
                    3.5 * operations / (seconds[0] + seconds[1]),
                );
            }
        }
        context.set_fuses(fuses);
    }
}
