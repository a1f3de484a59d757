//! A forward pass that shows what flows through the model: each block's input and output, and what each linear layer reads.
//! For statistics; training passes show nothing.

use crate::batch::Batch;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::mat::Mat;
use crate::ops::attention::Span;

/// Something that was seen.
pub enum Seen<'a> {
    /// A block took the residual stream from one to the other, both `[tokens, hidden]`.
    Block {
        /// Which one, from 0.
        block: usize,
        /// Its input.
        input: &'a Mat,
        /// Its output.
        output: &'a Mat,
    },
    /// A linear layer read this.
    Input {
        /// The name of its weight.
        weight: &'a str,
        /// `[tokens, in]`.
        x: &'a Mat,
    },
}

impl Decoder {
    /// Runs the blocks on a batch without dropout, and shows what `see` is to see, from the first block to the last. One
    /// block's activations are held at a time.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn observe(&self, batch: &Batch, see: &mut dyn FnMut(Seen<'_>)) -> Result<()> {
        batch.check(self.vocab())?;
        let spans = Span::documents(&batch.starts);
        let pass = self.pass(&batch.positions, &spans, None);
        let mut x = self.embed(&batch.ids);
        for (index, block) in self.blocks.iter().enumerate() {
            let (output, kept) = block.forward(x, &pass, false);
            block.show_inputs(&kept, &mut |linear, x| see(Seen::Input { weight: linear.weight.name(), x }));
            see(Seen::Block { block: index, input: &kept.x, output: &output });
            x = output;
        }
        Ok(())
    }
}
