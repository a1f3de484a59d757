//! Answers a native plugin's questions, each one counted and handed on to the [`Call`](crate::plugin::Call).

use super::table::Question;
use super::wire::{ANSWER, Message};
use crate::plan::AdapterSpec;
use crate::plugin::call::{Answer, Call, DEFECT, Fault, PLAN, Refusal, kind_name};
use crate::plugin::limits::Exceeded;
use crate::policy::Level;

/// Bytes that a question itself counts as.
const QUESTION: usize = 8;

/// The answer to a question, ready to be sent; a refusal is one too.
///
/// # Errors
/// A limit was exceeded: the plugin is stopped.
pub(super) fn answer(call: &mut Call<'_, '_>, question: Message) -> Result<Message, Exceeded> {
    call.count(QUESTION + question.len())?;
    let answer = match Question::of(question.tag) {
        Some(which) => ask(call, which, &mut Reader { numbers: question.numbers.into(), texts: question.texts.into() }),
        None => Err(senseless()),
    };
    let answer = match answer {
        Ok(mut answer) => {
            answer.numbers.insert(0, 0);
            answer
        }
        Err(Fault::Refused(refusal)) => {
            Message::new(ANSWER).number(u64::from(refusal.code.max(1))).text(refusal.message).text(refusal.help)
        }
        Err(Fault::Stopped(exceeded)) => return Err(exceeded),
    };
    call.meter.pass(answer.len())?;
    Ok(answer)
}

/// A question's numbers and texts, from the first to the last.
struct Reader {
    numbers: std::collections::VecDeque<u64>,
    texts: std::collections::VecDeque<Vec<u8>>,
}

fn senseless() -> Fault {
    Fault::Refused(Refusal { code: DEFECT, message: "the question makes no sense".into(), help: String::new() })
}

impl Reader {
    fn number(&mut self) -> Answer<u64> {
        self.numbers.pop_front().ok_or_else(senseless)
    }

    fn id(&mut self) -> Answer<u32> {
        self.number()?.try_into().map_err(|_| senseless())
    }

    fn float(&mut self) -> Answer<f64> {
        self.number().map(f64::from_bits)
    }

    fn bytes(&mut self) -> Answer<Vec<u8>> {
        self.texts.pop_front().ok_or_else(senseless)
    }

    fn text(&mut self) -> Answer<String> {
        String::from_utf8(self.bytes()?).map_err(|_| {
            let message = "a text that it passed is not UTF-8".to_string();
            Fault::Refused(Refusal { code: PLAN, message, help: String::new() })
        })
    }

    fn texts(&mut self) -> Answer<Vec<String>> {
        (0..self.number()?).map(|_| self.text()).collect()
    }

    fn ids(&mut self) -> Answer<Vec<u32>> {
        (0..self.number()?).map(|_| self.id()).collect()
    }

    fn floats(&mut self) -> Answer<Vec<f64>> {
        (0..self.number()?).map(|_| self.float()).collect()
    }
}

fn nothing() -> Message {
    Message::new(ANSWER)
}

fn number(number: u64) -> Message {
    nothing().number(number)
}

fn float(number: f64) -> Message {
    nothing().number(number.to_bits())
}

fn text(text: &str) -> Message {
    nothing().text(text)
}

fn maybe(value: Option<f64>) -> Message {
    value.map_or_else(nothing, float)
}

fn numbers(numbers: impl IntoIterator<Item = u64>) -> Message {
    Message { numbers: numbers.into_iter().collect(), ..nothing() }
}

fn floats(values: &[f64]) -> Message {
    numbers(values.iter().map(|value| value.to_bits()))
}

fn ask(call: &mut Call<'_, '_>, which: Question, given: &mut Reader) -> Answer<Message> {
    use Question as Q;
    Ok(match which {
        Q::architecture => text(call.architecture()),
        Q::blocks => number(call.blocks().into()),
        Q::tied => number(call.tied().into()),
        Q::tensor_count => number(call.tensor_count().into()),
        Q::find => number(call.find(&given.text()?)?.into()),
        Q::seed => number(call.seed()),
        Q::random => number(call.view_random(given.number()?)),
        Q::memory_budget => call.memory_budget().map_or_else(nothing, number),
        Q::choose => {
            let (setting, patterns, kinds) = (given.text()?, given.texts()?, given.texts()?);
            numbers(call.choose(&setting, patterns, &kinds)?.into_iter().map(u64::from))
        }
        Q::matching => {
            let (setting, patterns, among) = (given.text()?, given.texts()?, given.ids()?);
            numbers(call.matching(&setting, patterns, &among)?.into_iter().map(u64::from))
        }
        Q::prepare => {
            let (statistic, tensors) = (given.text()?, given.ids()?);
            call.prepare(&statistic, &tensors)?;
            nothing()
        }

        Q::tensor_name => text(&call.tensor(given.id()?)?.name),
        Q::tensor_role => text(&call.tensor(given.id()?)?.role),
        Q::tensor_kind => text(kind_name(call.tensor(given.id()?)?.kind)),
        Q::tensor_block => number(call.tensor(given.id()?)?.block.map_or(-1, |block| block as i64) as u64),
        Q::tensor_shape => numbers(call.tensor(given.id()?)?.shape.iter().map(|size| *size as u64)),
        Q::tensor_elements => number(call.tensor(given.id()?)?.len() as u64),
        Q::tensor_dtype => text(&call.tensor(given.id()?)?.dtype),
        Q::tensor_storage => text(&call.storage_of(given.id()?)?),
        Q::tensor_tied => number(call.tensor_tied(given.id()?)?.into()),
        Q::singular_values => floats(&call.singular_values(given.id()?)?),
        Q::spectral_threshold => float(call.spectral_threshold(given.id()?)?),
        Q::snr => float(call.spectral(given.id()?, "snr")?),
        Q::spectral => float(call.spectral(given.id()?, &given.text()?)?),
        Q::norm => float(call.norm(given.id()?, &given.text()?)?),
        Q::quantiles => floats(&call.quantiles(given.id()?, &given.floats()?, false)?),
        Q::magnitude_quantiles => floats(&call.quantiles(given.id()?, &given.floats()?, true)?),
        Q::moments => {
            let elements = call.elements(given.id()?)?;
            floats(&[elements.mean, elements.variance, elements.skewness, elements.kurtosis])
        }

        Q::calibrate => {
            call.calibrate(given.id()?)?;
            nothing()
        }
        Q::calibration_tokens => number(call.calibration()?.tokens()),
        Q::calibration_loss => float(call.measure(|data| data.loss())?),
        Q::loss_without_block => {
            let block = given.id()? as usize;
            float(call.measure(|data| data.loss_without_block(block))?)
        }
        Q::block_cosine => {
            let block = given.id()? as usize;
            float(call.measure(|data| data.block_cosine(block))?)
        }
        Q::gradient_norm => {
            let name = &call.tensor(given.id()?)?.name;
            float(call.measure(|data| data.gradient_norm(name))?)
        }
        Q::squared_gradient => {
            let name = &call.tensor(given.id()?)?.name;
            float(call.measure(|data| data.squared_gradient(name))?)
        }
        Q::weight_gradient => {
            let name = &call.tensor(given.id()?)?.name;
            float(call.measure(|data| data.weight_gradient(name))?)
        }
        Q::input_moments => {
            let name = &call.tensor(given.id()?)?.name;
            floats(&call.measure(|data| data.input_moments(name))?)
        }

        Q::step => number(call.moment()?.step),
        Q::total_steps => number(call.moment()?.total_steps),
        Q::since => number(call.moment()?.since),
        Q::losses => floats(&call.losses(given.number()?, given.id()?)?),
        Q::run_gradient_norm => maybe(call.moment_gradient_norm(given.id()?)?),
        Q::run_update_norm => maybe(call.moment_update_norm(given.id()?)?),
        Q::pick_random => number(call.moment()?.random(given.number()?)),
        Q::get_state => call.get_state(&given.text()?).map_or_else(nothing, |value| nothing().text(value)),
        Q::set_state => {
            call.set_state(given.text()?, given.bytes()?)?;
            nothing()
        }
        Q::log => {
            let level = match given.number()? {
                0 => Level::Debug,
                1 => Level::Info,
                _ => Level::Warn,
            };
            call.log(level, &String::from_utf8_lossy(&given.bytes()?))?;
            nothing()
        }
        plan => return plan_call(call, plan, given),
    })
}

fn plan_call(call: &mut Call<'_, '_>, which: Question, given: &mut Reader) -> Answer<Message> {
    use Question as Q;
    match which {
        Q::treatment => return Ok(text(call.treatment(given.id()?)?)),
        Q::trainable_parameters => return Ok(number(call.trainable_parameters())),
        Q::memory_estimate => return Ok(number(call.memory_estimate())),
        Q::freeze => call.freeze(given.id()?)?,
        Q::train => call.train(given.id()?)?,
        Q::adapt => {
            let id = given.id()?;
            let (rank, rslora, dora) = (given.number()? as usize, given.number()? != 0, given.number()? != 0);
            let (alpha, dropout) = (given.float()?, given.float()?);
            call.adapt(id, AdapterSpec { rank, alpha, dropout, rslora, dora })?;
        }
        Q::storage => call.storage(given.id()?, &given.text()?)?,
        Q::lr_scale => call.lr_scale(given.id()?, given.float()?)?,
        Q::lr_scale_b => call.lr_scale_b(given.id()?, given.float()?)?,
        Q::score => call.score(given.id()?, given.float()?)?,
        Q::pick_every => call.pick_every(given.number()?)?,
        Q::pick_at => call.pick_at(given.number()?)?,
        _ => return Err(senseless()),
    }
    Ok(nothing())
}
