//! The functions by which a component asks about the model, each one counted and handed on to the [`Call`](crate::plugin::Call).

use wasmtime::component::Resource;

use super::bindings::liftplan::policy::{calibration, model, types};
use super::guest::{Guest, Session, Tensor, View};
use crate::plugin::call::{Answer, Call, Fault, kind_name};

/// What a function without an error in its type gives back.
pub(super) type Plain<T> = wasmtime::Result<T>;

/// Bytes that a call itself counts as.
const CALL: usize = 8;

impl Guest {
    /// The call, after counting one more that passes so many bytes.
    pub(super) fn counted(&mut self, bytes: usize) -> Plain<&mut Call<'static, 'static>> {
        let call = self.call()?;
        call.count(CALL + bytes).map_err(wasmtime::Error::new)?;
        Ok(call)
    }

    /// The same for functions that can refuse.
    pub(super) fn asked(&mut self, bytes: usize) -> Answer<&mut Call<'static, 'static>> {
        match self.call() {
            Ok(call) => {
                call.count(CALL + bytes)?;
                Ok(call)
            }
            Err(error) => Err(fault(error)),
        }
    }
}

/// An error of [`Guest::call`] as a fault.
pub(super) fn fault(error: wasmtime::Error) -> Fault {
    match error.downcast::<crate::plugin::Exceeded>() {
        Ok(exceeded) => Fault::Stopped(exceeded),
        Err(other) => crate::Error::internal(other.to_string()).into(),
    }
}

/// A fault of a function that can't refuse. Only a limit can be its cause, since a handle's number is the host's own.
pub(super) fn broken(fault: Fault) -> wasmtime::Error {
    match fault {
        Fault::Stopped(exceeded) => wasmtime::Error::new(exceeded),
        Fault::Refused(refusal) => wasmtime::Error::msg(refusal.message),
    }
}

/// A text that goes to the component, counted.
fn text(call: &mut Call<'_, '_>, text: &str) -> Plain<String> {
    call.meter.pass(text.len()).map_err(wasmtime::Error::new)?;
    Ok(text.to_string())
}

/// Numbers that go to the component, counted.
pub(super) fn numbers<T: Clone>(call: &mut Call<'_, '_>, numbers: &[T]) -> Answer<Vec<T>> {
    call.meter.pass(size_of_val(numbers))?;
    Ok(numbers.to_vec())
}

impl types::Host for Guest {
    fn convert_error(&mut self, fault: Fault) -> Plain<types::Error> {
        match fault {
            Fault::Refused(refusal) => {
                let bytes = refusal.message.len() + refusal.help.len();
                self.call()?.meter.pass(bytes).map_err(wasmtime::Error::new)?;
                Ok(types::Error { code: refusal.code, message: refusal.message, help: refusal.help })
            }
            Fault::Stopped(exceeded) => Err(wasmtime::Error::new(exceeded)),
        }
    }
}

impl model::Host for Guest {}

impl model::HostTensor for Guest {
    fn id(&mut self, tensor: Resource<Tensor>) -> Plain<u32> {
        self.counted(0)?;
        Ok(tensor.rep())
    }

    fn name(&mut self, tensor: Resource<Tensor>) -> Plain<String> {
        let call = self.counted(0)?;
        let info = call.tensor(tensor.rep()).map_err(broken)?;
        text(call, &info.name)
    }

    fn role(&mut self, tensor: Resource<Tensor>) -> Plain<String> {
        let call = self.counted(0)?;
        let info = call.tensor(tensor.rep()).map_err(broken)?;
        text(call, &info.role)
    }

    fn dtype(&mut self, tensor: Resource<Tensor>) -> Plain<String> {
        let call = self.counted(0)?;
        let info = call.tensor(tensor.rep()).map_err(broken)?;
        text(call, &info.dtype)
    }

    fn kind(&mut self, tensor: Resource<Tensor>) -> Plain<String> {
        let call = self.counted(0)?;
        let info = call.tensor(tensor.rep()).map_err(broken)?;
        text(call, kind_name(info.kind))
    }

    fn block(&mut self, tensor: Resource<Tensor>) -> Plain<Option<u32>> {
        let info = self.counted(0)?.tensor(tensor.rep()).map_err(broken)?;
        Ok(info.block.map(|block| block as u32))
    }

    fn shape(&mut self, tensor: Resource<Tensor>) -> Plain<Vec<u64>> {
        let info = self.counted(16)?.tensor(tensor.rep()).map_err(broken)?;
        Ok(info.shape.iter().map(|size| *size as u64).collect())
    }

    fn elements(&mut self, tensor: Resource<Tensor>) -> Plain<u64> {
        Ok(self.counted(0)?.tensor(tensor.rep()).map_err(broken)?.len() as u64)
    }

    fn storage(&mut self, tensor: Resource<Tensor>) -> Plain<String> {
        self.counted(8)?.storage_of(tensor.rep()).map_err(broken)
    }

    fn tied(&mut self, tensor: Resource<Tensor>) -> Plain<bool> {
        self.counted(0)?.tensor_tied(tensor.rep()).map_err(broken)
    }

    fn singular_values(&mut self, tensor: Resource<Tensor>) -> Answer<Vec<f64>> {
        let call = self.asked(0)?;
        let values = call.singular_values(tensor.rep())?;
        numbers(call, &values)
    }

    fn spectral_threshold(&mut self, tensor: Resource<Tensor>) -> Answer<f64> {
        self.asked(0)?.spectral_threshold(tensor.rep())
    }

    fn snr(&mut self, tensor: Resource<Tensor>) -> Answer<f64> {
        self.asked(0)?.spectral(tensor.rep(), "snr")
    }

    fn spectral(&mut self, tensor: Resource<Tensor>, name: String) -> Answer<f64> {
        self.asked(name.len())?.spectral(tensor.rep(), &name)
    }

    fn norm(&mut self, tensor: Resource<Tensor>, name: String) -> Answer<f64> {
        self.asked(name.len())?.norm(tensor.rep(), &name)
    }

    fn quantiles(&mut self, tensor: Resource<Tensor>, parts: Vec<f64>) -> Answer<Vec<f64>> {
        self.asked(16 * parts.len())?.quantiles(tensor.rep(), &parts, false)
    }

    fn magnitude_quantiles(&mut self, tensor: Resource<Tensor>, parts: Vec<f64>) -> Answer<Vec<f64>> {
        self.asked(16 * parts.len())?.quantiles(tensor.rep(), &parts, true)
    }

    fn moments(&mut self, tensor: Resource<Tensor>) -> Answer<Vec<f64>> {
        let elements = self.asked(32)?.elements(tensor.rep())?;
        Ok(vec![elements.mean, elements.variance, elements.skewness, elements.kurtosis])
    }

    fn drop(&mut self, _: Resource<Tensor>) -> Plain<()> {
        Ok(())
    }
}

impl model::HostView for Guest {
    fn architecture(&mut self, _: Resource<View>) -> Plain<String> {
        let call = self.counted(0)?;
        let architecture = call.architecture();
        text(call, architecture)
    }

    fn blocks(&mut self, _: Resource<View>) -> Plain<u32> {
        Ok(self.counted(0)?.blocks())
    }

    fn tied(&mut self, _: Resource<View>) -> Plain<bool> {
        Ok(self.counted(0)?.tied())
    }

    fn tensor_count(&mut self, _: Resource<View>) -> Plain<u32> {
        Ok(self.counted(0)?.tensor_count())
    }

    fn tensor(&mut self, _: Resource<View>, id: u32) -> Answer<Resource<Tensor>> {
        self.asked(0)?.tensor(id)?;
        Ok(Resource::new_own(id))
    }

    fn find(&mut self, _: Resource<View>, name: String) -> Answer<Resource<Tensor>> {
        Ok(Resource::new_own(self.asked(name.len())?.find(&name)?))
    }

    fn seed(&mut self, _: Resource<View>) -> Plain<u64> {
        Ok(self.counted(0)?.seed())
    }

    fn random(&mut self, _: Resource<View>, draw: u64) -> Plain<u64> {
        Ok(self.counted(0)?.view_random(draw))
    }

    fn memory_budget(&mut self, _: Resource<View>) -> Plain<Option<u64>> {
        Ok(self.counted(0)?.memory_budget())
    }

    fn choose(
        &mut self,
        _: Resource<View>,
        setting: String,
        patterns: Vec<String>,
        kinds: Vec<String>,
    ) -> Answer<Vec<u32>> {
        let bytes = setting.len() + patterns.iter().chain(&kinds).map(String::len).sum::<usize>();
        let call = self.asked(bytes)?;
        let chosen = call.choose(&setting, patterns, &kinds)?;
        numbers(call, &chosen)
    }

    fn matching(
        &mut self,
        _: Resource<View>,
        setting: String,
        patterns: Vec<String>,
        among: Vec<u32>,
    ) -> Answer<Vec<u32>> {
        let bytes = setting.len() + patterns.iter().map(String::len).sum::<usize>() + 4 * among.len();
        let call = self.asked(bytes)?;
        let found = call.matching(&setting, patterns, &among)?;
        numbers(call, &found)
    }

    fn prepare(&mut self, _: Resource<View>, statistic: String, tensors: Vec<u32>) -> Answer<()> {
        self.asked(statistic.len() + 4 * tensors.len())?.prepare(&statistic, &tensors)
    }

    fn drop(&mut self, _: Resource<View>) -> Plain<()> {
        Ok(())
    }
}

impl calibration::Host for Guest {
    fn open(&mut self, _: Resource<View>, batches: u32) -> Answer<Resource<Session>> {
        self.asked(0)?.calibrate(batches)?;
        Ok(Resource::new_own(0))
    }
}

impl calibration::HostSession for Guest {
    fn tokens(&mut self, _: Resource<Session>) -> Plain<u64> {
        Ok(self.counted(0)?.calibration().map_err(broken)?.tokens())
    }

    fn loss(&mut self, _: Resource<Session>) -> Answer<f64> {
        self.asked(0)?.measure(|data| data.loss())
    }

    fn loss_without_block(&mut self, _: Resource<Session>, block: u32) -> Answer<f64> {
        self.asked(0)?.measure(|data| data.loss_without_block(block as usize))
    }

    fn block_cosine(&mut self, _: Resource<Session>, block: u32) -> Answer<f64> {
        self.asked(0)?.measure(|data| data.block_cosine(block as usize))
    }

    fn gradient_norm(&mut self, _: Resource<Session>, tensor: u32) -> Answer<f64> {
        let call = self.asked(0)?;
        let name = &call.tensor(tensor)?.name;
        call.measure(|data| data.gradient_norm(name))
    }

    fn squared_gradient(&mut self, _: Resource<Session>, tensor: u32) -> Answer<f64> {
        let call = self.asked(0)?;
        let name = &call.tensor(tensor)?.name;
        call.measure(|data| data.squared_gradient(name))
    }

    fn weight_gradient(&mut self, _: Resource<Session>, tensor: u32) -> Answer<f64> {
        let call = self.asked(0)?;
        let name = &call.tensor(tensor)?.name;
        call.measure(|data| data.weight_gradient(name))
    }

    fn input_moments(&mut self, _: Resource<Session>, tensor: u32) -> Answer<Vec<f64>> {
        let call = self.asked(32)?;
        let name = &call.tensor(tensor)?.name;
        Ok(call.measure(|data| data.input_moments(name))?.to_vec())
    }

    fn drop(&mut self, _: Resource<Session>) -> Plain<()> {
        Ok(())
    }
}
