//! One sitting of a run: from its first or resumed step to its end, early stop or interruption.

use std::sync::atomic::Ordering;
use std::time::Instant;

use liftplan_engine::Batch;

use super::card::memory_error;
use super::directory::Claimed;
use super::picks::Picker;
use super::prepare::Prepared;
use super::setup::{Passes, dealing, on_card, on_processor};
use super::{RunOptions, Schedule, Stepper, not_finite, pages};
use crate::checkpoint::State;
use crate::config::{Config, Length};
use crate::data::{self, Dataset, Sampler, SamplerOptions};
use crate::device::Chosen;
use crate::eval;
use crate::plan::Treatment;
use crate::plan::memory::{self, Memory};
use crate::report::{
    Ending, EvalRecord, Event, Fanout, LossAt, Observer, PeakMemory, RunLog, StepRecord, Summary, Trained, process,
    text,
};
use crate::{Error, Result};

/// Everything that a sitting works with.
pub(super) struct Session<'a> {
    config: &'a Config,
    options: &'a RunOptions,
    prepared: Prepared,
    directory: Claimed,
    stepper: Stepper,
    sampler: Sampler,
    schedule: Schedule,
    total_steps: u64,
    predicted: Memory,
    /// What computes, for the report.
    device: String,
    state: State,
    log: RunLog,
    first_step_s: Option<f64>,
    eval_after: Option<EvalRecord>,
}

/// Why the loop ended.
enum End {
    AllSteps,
    NoGain,
    Stopped,
}

impl<'a> Session<'a> {
    /// Builds the decoder and, when resuming, puts everything back as the checkpoint has it.
    pub fn start(
        config: &'a Config,
        options: &'a RunOptions,
        mut prepared: Prepared,
        directory: Claimed,
        chosen: Chosen,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let process_bytes = process::resident_bytes().unwrap_or(0);
        let started = Instant::now();
        observer.on(&Event::Phase("loading the weights"));
        let checkpoint = if directory.resume { Some(directory.store.read(None)?) } else { None };
        if let Some(checkpoint) = &checkpoint {
            checkpoint.check(&prepared.hashes)?;
        }
        if let (Some(picker), Some(checkpoint)) = (&mut prepared.picker, &checkpoint) {
            picker.restore(&checkpoint.state.policy)?;
        }
        let lengths: Vec<usize> = prepared.train.examples.iter().map(|example| example.ids.len()).collect();
        let sampling = SamplerOptions {
            seed: config.seed,
            batch_size: config.train.batch_size,
            dealing: dealing(config),
            epochs: match config.train.length() {
                Length::Epochs(epochs) => Some(epochs),
                Length::Steps(_) => None,
            },
        };
        let from_the_start = Sampler::new(lengths.clone(), sampling)?;
        let total_steps = match config.train.length() {
            Length::Steps(steps) => steps,
            Length::Epochs(_) => from_the_start.total_steps().unwrap_or(0),
        };
        let passes = Passes::of(config, &prepared.train, from_the_start, total_steps);
        let mut stepper = match &chosen.context {
            None => on_processor(config, &prepared, checkpoint.is_some(), observer)?,
            Some(context) => on_card(context, config, &prepared, &passes, observer)?,
        };
        prepared.seconds.build = started.elapsed().as_secs_f64();

        if config.optimizer.name.is_paged() && chosen.context.is_none() {
            stepper.optimizer.set_pages(pages::in_directory(&directory.path));
        }
        let (mut state, sampler, log) = if let Some(checkpoint) = checkpoint {
            stepper.load_weights(&checkpoint.trainable)?;
            stepper.load_states(&checkpoint.optimizer)?;
            let state = checkpoint.state;
            let place = serde_json::from_value(state.sampler.clone()).map_err(|error| {
                Error::output(format!("the checkpoint's place in the data cannot be read: {error}"))
            })?;
            let sampler = Sampler::resume(lengths, sampling, &place)?;
            let log = RunLog::resume(&directory.path, state.step)?;
            (state, sampler, log)
        } else {
            let state = State { hashes: prepared.hashes.clone(), ..State::default() };
            (state, Sampler::new(lengths, sampling)?, RunLog::create(&directory.path)?)
        };
        if let Some(picker) = &prepared.picker {
            picker.follow(&prepared.base, &mut stepper)?;
        }
        let schedule = Schedule::new(&config.schedule, total_steps);
        let room = stepper.prepare(state.card_room).map_err(|error| memory_error(error, "training", &prepared.plan))?;
        if let (Some(before), Some(now)) = (state.card_room, room)
            && now < before
        {
            observer.on(&Event::Warning(&format!(
                "the GPU has {} less free than when the run began: steps may be cut otherwise, and round otherwise",
                text::memory(before - now)
            )));
        }
        state.card_room = room;
        let predicted = match stepper.forecast(&passes.largest) {
            Some(forecast) => forecast.map_err(|error| memory_error(error, "training", &prepared.plan))?,
            None => memory::predict(
                &prepared.plan,
                &prepared.base.inventory,
                &prepared.base.spec,
                memory::States::of(config),
                passes.work,
                process_bytes,
            ),
        };
        Ok(Self {
            config,
            options,
            prepared,
            directory,
            stepper,
            sampler,
            schedule,
            total_steps,
            predicted,
            device: chosen.name,
            state,
            log,
            first_step_s: None,
            eval_after: None,
        })
    }

    /// Trains to the end and writes the summary.
    pub fn train(mut self, observer: &mut dyn Observer) -> Result<Summary> {
        match self.steps(observer) {
            Ok(End::Stopped) => {
                self.save(observer)?;
                self.summarise(Ending::Interrupted)?;
                let step = self.state.step;
                Err(Error::interrupted(format!("stopped after step {step} of {}", self.total_steps)).help(format!(
                    "a checkpoint is in {}; go on with the same command and --resume",
                    self.directory.store.path_of(step).display()
                )))
            }
            Ok(end) => {
                self.save(observer)?;
                let ending = match (end, self.state.best_eval_loss) {
                    (End::NoGain, Some(best)) => {
                        // The result of the run is its best step, whose checkpoint is never pruned.
                        let checkpoint = self.directory.store.read(Some(best.step))?;
                        self.stepper.load_weights(&checkpoint.trainable)?;
                        Ending::EarlyStopped { best_step: best.step }
                    }
                    _ => Ending::Completed,
                };
                if self.config.eval.before_and_after {
                    self.eval_after = self.evaluate_result(observer)?;
                }
                self.summarise(ending)
            }
            Err(error) => {
                // The error is what the user must see, so that one in writing the summary is left unsaid.
                let _ = self.summarise(Ending::Failed { error: error.to_string() });
                Err(error)
            }
        }
    }

    fn steps(&mut self, observer: &mut dyn Observer) -> Result<End> {
        if self.state.step == 0 && self.state.eval_before.is_none() && self.config.eval.before_and_after {
            self.state.eval_before = self.evaluate_result(observer)?;
        }
        observer.on(&Event::Phase("training"));
        while self.state.step < self.total_steps {
            if self.options.stop.load(Ordering::Relaxed) {
                return Ok(End::Stopped);
            }
            let Some(batches) = self.sampler.next_step() else { break };
            self.pick(observer)?;
            self.step(&batches.micro_batches, observer)?;
            let (step, train) = (self.state.step, &self.config.train);
            let due = |every: Option<u64>| every.is_some_and(|every| step % every == 0);
            let no_gain = due(train.eval_every) && self.validate(observer)?;
            if due(train.checkpoint_every) && step < self.total_steps {
                self.save(observer)?;
            }
            if no_gain {
                return Ok(End::NoGain);
            }
        }
        Ok(End::AllSteps)
    }

    /// Lets the policy revise the plan, if it asked for that before the next step.
    fn pick(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let step = self.state.step + 1;
        let Some(picker) = self.prepared.picker.as_mut().filter(|picker| picker.due(step)) else { return Ok(()) };
        let (base, total) = (&self.prepared.base, self.total_steps);
        let record = picker.pick(step, total, base, self.config, &mut self.stepper, observer)?;
        let room = self.stepper.prepare(None);
        self.state.card_room = room.map_err(|error| memory_error(error, "what is to train", &self.prepared.plan))?;
        self.tell(&Event::Pick(&record), observer)
    }

    fn step(&mut self, micro_batches: &[Vec<usize>], observer: &mut dyn Observer) -> Result<()> {
        let started = Instant::now();
        let step = self.state.step + 1;
        let examples = &self.prepared.train.examples;
        let collate = |micro: &Vec<usize>| data::collate(&micro.iter().map(|&i| &examples[i]).collect::<Vec<_>>());
        let batches: Vec<Batch> = micro_batches.iter().map(collate).collect();
        let lr = self.config.optimizer.lr * self.schedule.factor(self.state.step);
        let outcome = self.stepper.step(step, &batches, lr).map_err(|error| {
            match self.stepper.not_finite_in.and_then(|micro| micro_batches.get(micro)) {
                Some(micro) => not_finite::among(error, micro.iter().map(|&i| &examples[i].source)),
                None => error,
            }
        })?;
        let seconds = started.elapsed().as_secs_f64();
        if self.first_step_s.is_none() {
            self.first_step_s = process::seconds_since_start();
        }
        let loss = outcome.loss.mean();
        if let Some(picker) = &mut self.prepared.picker {
            picker.stepped(loss);
        }
        let state = &mut self.state;
        state.step = step;
        state.tokens += outcome.tokens;
        state.train_s += seconds;
        state.last_loss = Some(loss);
        if state.best_loss.is_none_or(|best| loss < best.loss) {
            state.best_loss = Some(LossAt { step, loss });
        }
        let record = StepRecord {
            step,
            loss,
            lr,
            grad_norm: outcome.grad_norm,
            tokens: outcome.tokens,
            tokens_per_s: outcome.tokens as f64 / seconds.max(1e-9),
            mem_bytes: match self.stepper.card_bytes() {
                Some((now, _)) => now,
                None => process::resident_bytes().unwrap_or(0),
            },
        };
        self.tell(&Event::Step { record: &record, total: self.total_steps }, observer)
    }

    /// Evaluates on the validation data; says whether it is time to stop for want of gain.
    fn validate(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let Some(data) = &self.prepared.validation else { return Ok(false) };
        let record = self.evaluate(data, "validation", observer)?;
        self.tell(&Event::Eval(&record), observer)?;
        let stopping = self.config.train.early_stopping;
        let min_delta = stopping.map_or(0.0, |stopping| stopping.min_delta);
        if self.state.best_eval_loss.is_none_or(|best| record.eval_loss < best.loss - min_delta) {
            self.state.best_eval_loss = Some(LossAt { step: record.step, loss: record.eval_loss });
            self.state.evals_without_gain = 0;
            if self.config.train.checkpoint_every.is_some() || stopping.is_some() {
                self.save(observer)?;
            }
        } else {
            self.state.evals_without_gain += 1;
        }
        Ok(stopping.is_some_and(|stopping| self.state.evals_without_gain >= stopping.patience))
    }

    /// Evaluates on the test data, or on the validation data where there is none.
    fn evaluate_result(&mut self, observer: &mut dyn Observer) -> Result<Option<EvalRecord>> {
        let (data, split) = match (&self.prepared.test, &self.prepared.validation) {
            (Some(test), _) => (test, "test"),
            (None, Some(validation)) => (validation, "validation"),
            (None, None) => return Ok(None),
        };
        let record = self.evaluate(data, split, observer)?;
        self.tell(&Event::Eval(&record), observer)?;
        Ok(Some(record))
    }

    fn evaluate(&self, data: &Dataset, split: &str, observer: &mut dyn Observer) -> Result<EvalRecord> {
        observer.on(&Event::Phase(&format!("evaluating on the {split} data")));
        let job = eval::Job {
            decoder: self.stepper.model(),
            tokenizer: &self.prepared.base.tokenizer,
            data,
            config: &self.config.eval,
            micro_batch_tokens: self.config.train.micro_batch_tokens,
        };
        let outcome = job.run(observer)?;
        Ok(EvalRecord {
            step: self.state.step,
            split: split.to_string(),
            eval_loss: outcome.loss,
            scores: outcome.scores,
        })
    }

    /// Writes a checkpoint and removes those that are not to be kept.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.state.sampler = serde_json::to_value(self.sampler.state())
            .map_err(|error| Error::internal(format!("the place in the data is not JSON: {error}")))?;
        if let Some(picker) = &self.prepared.picker {
            self.state.policy = picker.keep(&self.stepper)?;
        }
        let path = self.stepper.save(&self.directory.store, self.state.clone())?;
        let best = self.state.best_eval_loss.map(|best| best.step);
        self.directory.store.prune(self.config.train.keep_checkpoints, best)?;
        self.tell(&Event::Checkpoint(&path), observer)
    }

    /// Writes the event to the run's log and hands it on.
    fn tell(&mut self, event: &Event<'_>, observer: &mut dyn Observer) -> Result<()> {
        Fanout::new().with(&mut self.log).with(observer).on(event);
        self.log.check()
    }

    fn summarise(&mut self, ended: Ending) -> Result<Summary> {
        let state = &self.state;
        let plan = self.prepared.picker.as_ref().map_or_else(|| self.prepared.plan.clone(), Picker::result);
        let (picks, plugin_s) = self.prepared.picker.as_ref().map_or((0, self.prepared.plugin_s), Picker::totals);
        let count = |wanted: fn(&Treatment) -> bool| plan.entries.iter().filter(|e| wanted(&e.treatment)).count();
        let measured_bytes = self.stepper.card_bytes().map(|(_, most)| most).or_else(process::peak_bytes);
        let mut seconds = self.prepared.seconds.clone();
        seconds.train = state.train_s;
        let summary = Summary {
            version: 1,
            model: self.prepared.base.origin.clone(),
            device: self.device.clone(),
            policy: plan.origin.policy.clone(),
            ended,
            trained: Trained {
                trainable_parameters: self.stepper.parameters(),
                total_parameters: self.prepared.base.inventory.tensors.iter().map(|t| t.len() as u64).sum(),
                trained_tensors: count(|treatment| *treatment == Treatment::Train),
                adapted_tensors: count(|treatment| matches!(treatment, Treatment::Adapt(_))),
            },
            picks,
            plugin_s,
            steps: state.step,
            planned_steps: self.total_steps,
            tokens: state.tokens,
            tokens_per_s: state.tokens as f64 / state.train_s.max(1e-9),
            final_loss: state.last_loss,
            best_loss: state.best_loss,
            best_eval_loss: state.best_eval_loss,
            eval_before: state.eval_before.clone(),
            eval_after: self.eval_after.clone(),
            peak_memory: PeakMemory {
                predicted_bytes: Some(self.predicted.total()),
                predicted: Some(self.predicted),
                measured_bytes,
            },
            seconds,
            first_step_s: self.first_step_s,
            versions: crate::report::summary::versions(),
            hashes: self.prepared.hashes.clone(),
        };
        summary.write(&self.directory.path)?;
        Ok(summary)
    }
}
