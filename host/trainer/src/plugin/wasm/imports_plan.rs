//! The functions by which a component plans, learns of the run, and speaks to the user, each one counted and handed on to
//! the [`Call`](crate::plugin::Call).

use wasmtime::component::Resource;

use super::bindings::liftplan::policy::{log, plan, run};
use super::guest::{Adapter, Builder, Guest, Moment};
use super::imports::{Plain, broken, fault, numbers};
use crate::plan::AdapterSpec;
use crate::plugin::call::Answer;
use crate::policy::Level;

impl Guest {
    fn adapter(&mut self, adapter: &Resource<Adapter>) -> Plain<&mut AdapterSpec> {
        self.counted(0)?;
        let place = self.adapters.get_mut(adapter.rep() as usize).and_then(Option::as_mut);
        place.ok_or_else(|| wasmtime::Error::msg("the adapter is gone"))
    }
}

impl plan::Host for Guest {}

impl plan::HostAdapter for Guest {
    fn new(&mut self, rank: u32) -> Plain<Resource<Adapter>> {
        self.counted(0)?;
        let alpha = 2.0 * f64::from(rank);
        let spec = AdapterSpec { rank: rank as usize, alpha, dropout: 0.0, rslora: false, dora: false };
        let place = match self.adapters.iter().position(Option::is_none) {
            Some(free) => {
                self.adapters[free] = Some(spec);
                free
            }
            None => {
                self.adapters.push(Some(spec));
                self.adapters.len() - 1
            }
        };
        Ok(Resource::new_own(place as u32))
    }

    fn alpha(&mut self, adapter: Resource<Adapter>, value: f64) -> Plain<()> {
        self.adapter(&adapter)?.alpha = value;
        Ok(())
    }

    fn dropout(&mut self, adapter: Resource<Adapter>, value: f64) -> Plain<()> {
        self.adapter(&adapter)?.dropout = value;
        Ok(())
    }

    fn rank_stabilised(&mut self, adapter: Resource<Adapter>, value: bool) -> Plain<()> {
        self.adapter(&adapter)?.rslora = value;
        Ok(())
    }

    fn dora(&mut self, adapter: Resource<Adapter>, value: bool) -> Plain<()> {
        self.adapter(&adapter)?.dora = value;
        Ok(())
    }

    fn drop(&mut self, adapter: Resource<Adapter>) -> Plain<()> {
        if let Some(place) = self.adapters.get_mut(adapter.rep() as usize) {
            *place = None;
        }
        Ok(())
    }
}

impl plan::HostBuilder for Guest {
    fn freeze(&mut self, _: Resource<Builder>, tensor: u32) -> Answer<()> {
        self.asked(0)?.freeze(tensor)
    }

    fn train(&mut self, _: Resource<Builder>, tensor: u32) -> Answer<()> {
        self.asked(0)?.train(tensor)
    }

    fn adapt(&mut self, _: Resource<Builder>, tensor: u32, adapter: Resource<Adapter>) -> Answer<()> {
        let spec = self.adapter(&adapter).map_err(fault)?.clone();
        self.asked(0)?.adapt(tensor, spec)
    }

    fn storage(&mut self, _: Resource<Builder>, tensor: u32, storage: String) -> Answer<()> {
        self.asked(storage.len())?.storage(tensor, &storage)
    }

    fn lr_scale(&mut self, _: Resource<Builder>, tensor: u32, factor: f64) -> Answer<()> {
        self.asked(0)?.lr_scale(tensor, factor)
    }

    fn lr_scale_b(&mut self, _: Resource<Builder>, tensor: u32, factor: f64) -> Answer<()> {
        self.asked(0)?.lr_scale_b(tensor, factor)
    }

    fn score(&mut self, _: Resource<Builder>, tensor: u32, score: f64) -> Answer<()> {
        self.asked(0)?.score(tensor, score)
    }

    fn pick_every(&mut self, _: Resource<Builder>, steps: u64) -> Answer<()> {
        self.asked(0)?.pick_every(steps)
    }

    fn pick_at(&mut self, _: Resource<Builder>, step: u64) -> Answer<()> {
        self.asked(0)?.pick_at(step)
    }

    fn treatment(&mut self, _: Resource<Builder>, tensor: u32) -> Answer<String> {
        Ok(self.asked(8)?.treatment(tensor)?.to_string())
    }

    fn trainable_parameters(&mut self, _: Resource<Builder>) -> Plain<u64> {
        Ok(self.counted(0)?.trainable_parameters())
    }

    fn memory_estimate(&mut self, _: Resource<Builder>) -> Plain<u64> {
        Ok(self.counted(0)?.memory_estimate())
    }

    fn drop(&mut self, _: Resource<Builder>) -> Plain<()> {
        Ok(())
    }
}

impl run::Host for Guest {
    fn get_state(&mut self, key: String) -> Plain<Option<Vec<u8>>> {
        let call = self.counted(key.len())?;
        let value = call.get_state(&key);
        call.meter.pass(value.as_ref().map_or(0, Vec::len)).map_err(wasmtime::Error::new)?;
        Ok(value)
    }

    fn set_state(&mut self, key: String, value: Vec<u8>) -> Answer<()> {
        self.asked(key.len() + value.len())?.set_state(key, value)
    }
}

impl run::HostMoment for Guest {
    fn step(&mut self, _: Resource<Moment>) -> Plain<u64> {
        Ok(self.counted(0)?.moment().map_err(broken)?.step)
    }

    fn total_steps(&mut self, _: Resource<Moment>) -> Plain<u64> {
        Ok(self.counted(0)?.moment().map_err(broken)?.total_steps)
    }

    fn since(&mut self, _: Resource<Moment>) -> Plain<u64> {
        Ok(self.counted(0)?.moment().map_err(broken)?.since)
    }

    fn losses(&mut self, _: Resource<Moment>, first: u64, count: u32) -> Plain<Vec<f64>> {
        let call = self.counted(0)?;
        let losses = call.losses(first, count).map_err(broken)?;
        numbers(call, &losses).map_err(broken)
    }

    fn gradient_norm(&mut self, _: Resource<Moment>, tensor: u32) -> Answer<Option<f64>> {
        self.asked(0)?.moment_gradient_norm(tensor)
    }

    fn update_norm(&mut self, _: Resource<Moment>, tensor: u32) -> Answer<Option<f64>> {
        self.asked(0)?.moment_update_norm(tensor)
    }

    fn random(&mut self, _: Resource<Moment>, draw: u64) -> Plain<u64> {
        Ok(self.counted(0)?.moment().map_err(broken)?.random(draw))
    }

    fn drop(&mut self, _: Resource<Moment>) -> Plain<()> {
        Ok(())
    }
}

impl log::Host for Guest {
    fn debug(&mut self, message: String) -> Plain<()> {
        self.counted(message.len())?.log(Level::Debug, &message).map_err(wasmtime::Error::new)
    }

    fn info(&mut self, message: String) -> Plain<()> {
        self.counted(message.len())?.log(Level::Info, &message).map_err(wasmtime::Error::new)
    }

    fn warn(&mut self, message: String) -> Plain<()> {
        self.counted(message.len())?.log(Level::Warn, &message).map_err(wasmtime::Error::new)
    }
}
