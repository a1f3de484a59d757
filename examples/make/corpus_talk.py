"""Shop talk for the pre-training corpus: what each topic is about, said in general, and how a clerk answers.

`SCENES` are clauses of customers, `REPLIES` what the shop writes back, `FACTS` general statements. No sentence of a ticket
template stands here, and no topic is ever named as an answer: the base model learns what the words have to do with each
other, not the task.
"""

MONEY = [
    "[the|a|my] [bill|invoice|receipt|statement] [is|seems|looks] [wrong|too high|off by {euros}|not what we agreed|still open]",
    "[my bank|the bank|my credit card company] [reports|shows|lists] [a payment|a debit|a fee|two debits|an amount|a charge] of {euros}",
    "I [paid|transferred|sent] {euros} [{ago}|by card|by bank transfer|in advance|with a gift card] [|and see no credit for it|and you ask me to pay again]",
    "the [price|sum|fee|amount|tax|rate|total] [rose|changed|is higher than shown|was counted twice|does not add up]",
    "my [card|gift card|voucher|discount|coupon] was [declined|refused|not counted|ignored] at the [checkout|payment page|till]",
    "you [debited|charged|billed|withdrew] [{euros}|too much|the wrong card|the same sum again|my old bank account]",
    "the [subscription|yearly plan|monthly plan|membership fee] [renewed itself|costs {euros} now|was billed too early]",
    "I [need|lack|miss|am waiting for] [an invoice|a receipt|a tax bill|a copy of the bill] [for my office|with our company name|for {order}]",
]
ROAD = [
    "[the|my] [parcel|package|box|shipment|order] [is late|got lost|has not come|never arrived|is on the way for {number} days|went to the wrong house]",
    "the [courier|driver|carrier|van|truck|post] [did not ring|came too early|left it at the gate|drove past|lost the box|took it to the depot]",
    "the tracking [page|number|map] [shows nothing|says delivered|stands still|says it left the warehouse {ago}|names another town]",
    "[{order}|the {product}] [was shipped|left the depot|was sent off|should have come] {ago} [|and is still on the road|and nobody has seen it]",
    "[please bring|can you drop off|leave] the [parcel|box|package] [at the back door|with a neighbour|at my new address|on {weekday}|at the pick up shop]",
    "[one|two] of the [packages|boxes] [is|are] missing [from the shipment|and the rest came {ago}|although the carrier says all is here]",
    "nobody [brought|handed me|delivered] the {product} [|yet|although I was at home all day|to my doorstep]",
    "when will [the van|the driver|my parcel|the shipment] [come|arrive|get here|reach our town]",
]
BACK = [
    "I [want|would like|wish|plan] to [return|send back|give back|exchange|swap|trade] the {product} [|for another colour|for a larger size|because it does not fit]",
    "[my|the] [refund|exchange|return] [is missing|has not come|was refused|takes too long|was agreed {ago}|was only partly paid]",
    "please [cancel|stop|undo|take back] [my order|{order}|the purchase|the {product}] [|, I need it no more|, I bought it by mistake|before it is packed]",
    "the {product} is [too big|too small|the wrong size|the wrong colour|a double gift|not what I wanted] and [goes back|I do not keep it|I want my money back]",
    "I [posted|handed in|sent] the [unwanted|unused|unopened] {product} back {ago} and [wait for the money|have no refund|heard nothing]",
    "[where is|I need|can you mail me] the [return label|return form|paper for the box|address for sending it back]",
    "I [changed my mind|thought again|regret the purchase] and [want a refund|would like to hand it back|will not keep the {product}]",
    "may I [return|swap|bring back] [a gift|the {product}|an opened box] after {number} [days|weeks]",
]
BROKEN = [
    "[the|my] {product} [is broken|is dead|does not work|will not start|stopped working|has a defect|failed {ago}]",
    "the [motor|battery|screen|lid|handle|plug|cable|button|seal|switch|display|lamp|wheel] [broke|came loose|is torn|is cracked|is stuck|gave up|got hot|is dead]",
    "it [makes a noise|leaks water|smells of smoke|sparks|gets too hot|blinks red|shakes|freezes|turns itself off|does not charge|loses power]",
    "the {product} [shows an error|lost its connection|crashes after the update|stays black|hums and stops|burns|drips]",
    "[can you|please|could a mechanic] [mend|repair|fix|look at] [it|the {product}|the damaged part] [|under the warranty|soon|at my house]",
    "a [part|piece|screw|corner|spring] of the {product} [snapped|fell off|melted|is bent|is missing after one use]",
    "the {product} has [a crack|a fault|a short circuit|a broken motor|a leak|a flat battery|a loose wire]",
    "since {weekday} the {product} [runs slowly|makes a grinding sound|does not switch on|stops in the middle|only flickers]",
]
LOGIN = [
    "I [cannot|could not|am unable to] [log in|sign in|open my profile|get into my account|register|change my password]",
    "my [password|login|user name|profile|e-mail address|phone number] [is refused|is not accepted|is wrong|was changed|is unknown to the site|must be updated]",
    "the [code|link|mail|message] for [signing in|a new password|the registration|the second step] [never came|has expired|does not work|goes to my old phone]",
    "[please|can you] [unlock|delete|close|merge|rename|reset|update] my [account|profile|login|user name|membership|data]",
    "[somebody|a stranger|my brother] [uses|knows|has changed] my [password|login|profile]",
    "the [site|page|app] [logs me out|does not know my name|locked me out|asks for a code again and again]",
    "I [forgot|lost|mistyped|want to change] my [password|user name|e-mail address|sign in code|security question]",
    "I want [no newsletter|my data erased|a copy of my data|my new name in the settings|to turn off the second step]",
]
CHOICE = [
    "[which|what] {product} [would you take|do you recommend|is the best|is easy to use|suits a small room|fits a family of {number}]",
    "[is|would] the {product} [be loud|be heavy|be safe for children|be good for a beginner|fit on a shelf|last for years]",
    "does the {product} [need a special plug|come with a manual|run on batteries|have a timer|fit a narrow kitchen|work outdoors]",
    "how [wide|tall|heavy|loud|strong|old|large] is the [{product}|new {product}|{colour} {product}]",
    "what [is the difference between|do people say about|would you pick out of] the [two models|{colour} {product} and the {colour} one|new models]",
    "I [am thinking of buying|want to buy|am looking for|cannot choose] a {product} [|, what do you suggest|for my mother|for a long trip|as a gift]",
    "do you [sell|stock|have] [spare parts for the {product}|a larger {product}|a cheaper model|the {colour} {product} in a shop near me]",
    "before I [buy|order|decide] I would like to [know its size|know the weight|compare two models|hear your opinion|know how many watts it needs]",
]
SCENES = {"billing": MONEY, "delivery": ROAD, "returns": BACK, "repair": BROKEN, "account": LOGIN, "advice": CHOICE}

# What a letter can be about, named barely. Larger models know from their reading which of these words go together.
THINGS = {
    "billing": """the fee|my bill|the invoice|the receipt|the tax|my bank statement|the debit|the payment|the coupon|the voucher|my credit card|the bank transfer|the checkout
the price|the sum|the total|the amount|the reminder|the yearly plan|the membership fee|the discount|the offer|what I owe|the sum that I overpaid|the company name on the bill|my gift card
the rates|the service fee|the money you took|the double charge|the late fee|the card payment|the wrong sum|my bank""",
    "delivery": """my parcel|the van|the truck|the depot|the driver|the courier|the tracking|the street you sent it to|my doorstep|the mail man|the shipment|the warehouse|the note on my door|the neighbour who has it
the back door|the house number|the pick up shop|the carrier|the wrong town|the lost box|the long way of my parcel|the drop off|the empty doorstep|the day it arrives|the shipping date|the late package|where it is now
the man from the depot|the missing box|the road it is on|my new address for the parcel|the overdue order""",
    "returns": """my refund|the exchange|the swap|the return label|the return sticker|the wrong size|the cancellation|the unwanted gift|a purchase that I regret|my money back|the wrong colour|the picture it does not match
the unopened box to hand back|the return form|the order that I called off|the thing I sent back|the larger size|the smaller one instead|the double gift|a bad buy|what you refunded|the trade for a new one
giving it back|taking it back|the order I do not want|the half refund|a return after weeks|calling off the order|the other colour instead""",
    "repair": """the plug|the cable|the burned cord|the sensor|the switch|the smoke|the sparks|the grinding noise|the crack|the leak|the motor|the flat battery|the black screen|the display|the lid|the handle|the wheel|the timer
the speaker|the blown fuse|a smell of rubber|the defect|the warranty|the mechanic you sent|the heat it gives off|the loss of power|the loose wire|the stuck button|the error that blinks|the drips|the rattle inside
the crash after the update|the dead machine|the fault|the shaking|the lamp that flickers|the seal""",
    "account": """my login|my password|my user name|my profile|my e-mail address|my phone number on the page|the sign in code|the six digits|the reset link|the second step|my login history|the registration|my access|my birthday on the page
the settings|the newsletter|my data|my membership|my last name on the page|the confirmation mail|the locked page|the denied access|the sign up form|the stranger who logged in|erasing my details|wiping my data|being logged out|the blocked profile
the merged profiles|my spelled name|the forgotten address|my brother's access""",
    "advice": """the size I should take|its weight|the models you have|the manual|the difference between two models|how many watts it needs|the room it needs|whether it suits a kitchen|whether it fits a shelf|if a child can use it|a good one for a beginner
my tight budget|the reviews|the material|whether it is wood or plastic|the colours|the spare parts one can get|a gift for my mother|how long one charge lasts|how long it lasts|the best choice|which one to buy|what you suggest|a quiet one
whether to wait for the next one|a cheaper model|how to choose|how strong it is|how bright it is|if it works outdoors|what schools use|what it is made of""",
}
THINGS = {topic: things.replace("\n", "|").split("|") for topic, things in THINGS.items()}
PLAINLY = ["this is about {thing}", "I write because of {thing}", "[my trouble is|it is all about|let us talk about] {thing}", "[I have a question|please think] about {thing}", "{thing}, that is [my problem|what I write about|the matter]"]

# What is all right or long settled: mentioned in passing, and to be ignored by the answer.
SETTLED = {
    "billing": ["[the invoice|the bill|the price|the payment|the receipt] [was|is] [fine|correct|all right|settled|in order]", "I [paid|have paid] [in full|already|{ago}|by card|at once]",
                "[my bank|the bank] [agrees|has confirmed it|sees no problem]", "it [cost|was] only {euros}", "the [debit|charge] of {euros} was right"],
    "delivery": ["[the parcel|the package|the box|the shipment] [came|arrived|was here] [quickly|in time|{ago}|early]", "the [courier|driver|carrier] was [friendly|quick|on time|polite]",
                 "[shipping|delivery] [took only two days|was fast|went well]", "the [tracking|drop off] worked", "the box was [at my door|with a neighbour] {ago} and I have it"],
    "returns": ["I [do not want|am not asking for|do not need] [a refund|an exchange|my money back|to return it]", "I [sent back|returned|exchanged] [another thing|a {product}] {ago} and [have the refund|all went well|was paid back]",
                "I [keep|will keep|like to keep] the {product}", "[cancelling|returning it] is not [what I want|needed]", "the refund for the other one [came|was paid] {ago}"],
    "repair": ["the {product} [works|runs] [well|fine|as it should|without a fault]", "my [last|old|first] {product} [broke|failed|stopped working] [years ago|after a year|{ago}]", "nothing [broke|is damaged|is cracked]",
               "you [repaired|mended] my [old|other] {product} {ago}", "the [battery|motor|screen] is [good|strong|quiet|fine]"],
    "account": ["I [could log in|am signed in|got into my account|can log in] [at once|without trouble|as usual]", "my [password|profile|user name] is [fine|correct|as it was]", "you have my [phone number|e-mail address|name] in my profile",
                "I [changed|updated] my [password|profile] {ago}", "my account [is|was] open"],
    "advice": ["I [read|know] the [manual|reviews|description]", "my [sister|friend|brother|neighbour] [suggested|recommended|chose] the {product}", "I [know|saw|have checked] that it fits [my kitchen|the shelf|my room]",
               "it is easy to [use|clean|carry]", "I [compared|looked at] [several|many] models [before|{ago}]"],
}

REPLIES = {
    "billing": ["[I am|we are] sorry about the [wrong amount|charge|bill|payment trouble].", "We will [check the payment|correct the invoice|pay back the difference|talk to your bank].",
                "[The|Your] [invoice|receipt|credit note] will [come by mail|be sent {weekday}|show the right sum].", "Please tell us the [date of the debit|last digits of your card|sum on the bill]."],
    "delivery": ["[I am|we are] sorry that the [parcel|package|box] is [late|lost|not there].", "We [asked the carrier|called the driver|are looking for the shipment|will send it once more].",
                 "It should [arrive|reach you|be at your door] by {weekday}.", "Please tell us your [street|full address|house number]."],
    "returns": ["You can [send it back|return it|exchange it] within {number} weeks.", "We will mail you a [label|form] for the [box|way back].",
                "[The refund|Your money] will be [paid back|with you] within {number} days.", "[The order is cancelled|We have stopped the order|The exchange is on its way]."],
    "repair": ["[I am|we are] sorry that the {product} [failed|is broken|does not work].", "Please [unplug it|charge it for an hour|press the button for ten seconds|send us a photo of the damage].",
               "Our [mechanic|workshop] will [repair it|mend it|look at it] [|under the warranty].", "Please do not [use|open] it until then."],
    "account": ["We have [reset your password|unlocked your profile|sent a new link|changed your name|removed your data].", "You can [sign in|log in] again [now|in an hour|with the new code].",
                "Please choose a [new|longer|stronger] password.", "For your safety, [tell nobody the code|we check who you are first]."],
    "advice": ["[I would take|We recommend|Most people like] the [{colour} one|smaller model|new {product}].", "It [weighs {number} pounds|is {number} feet wide|needs {number} hundred watts|comes with a manual].",
               "It [is easy to clean|is rather quiet|fits any kitchen|is safe for children|can be used outdoors].", "[Ask us again|Write to us|Visit a shop] if you cannot decide."],
}

FACTS = {
    "billing": ["[An invoice|A bill|A receipt] says [what a customer has to pay|how much money is owed|which sum was paid].", "A [bank|credit card] [moves money|shows each payment and each debit].",
                "A [fee|tax|charge] is [added to|part of] the price.", "A [discount|voucher|coupon|gift card] makes the price lower."],
    "delivery": ["A [courier|driver|carrier] brings [parcels|packages|boxes] [to the door|from the depot to the house].", "A tracking number tells where [a parcel|a shipment] is.",
                 "A [van|truck] takes the boxes from the warehouse to the [town|doorstep|pick up shop].", "A parcel that is [lost|late] is still on the road."],
    "returns": ["Who does not want a thing [sends it back|returns it|gives it back] and gets a refund.", "A refund means that the money comes back.", "An exchange swaps one thing for another [size|colour].",
                "An order can be [cancelled|stopped] before it is packed."],
    "repair": ["A mechanic [repairs|mends|fixes] what is broken.", "A machine with a [fault|crack|leak|dead battery] does not work.", "[Smoke|A grinding noise|A spark|A burning smell] means that something is broken.",
               "The warranty covers the [repair|defect]."],
    "account": ["A [password|user name|login code] lets you sign in.", "A profile holds the [name|e-mail address|phone number|data] of a customer.", "Who forgets the password cannot log in.",
                "A locked account can be unlocked with a [code|link]."],
    "advice": ["Before buying, people [compare models|ask which one is better|read what others say|ask how big it is].", "Good advice helps to choose the right [model|size|colour].",
               "A manual tells how to use a thing.", "[A small|A large|A quiet|A cheap] model suits [a small room|a family|a beginner|an office]."],
}
