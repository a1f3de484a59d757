"""The words that every generator here shares: people, places, things and when something happens.

The lists are made up for this project. Those that a test should not have seen in training are cut by
`grammar.held_out`, so their order matters: of every six entries the fifth is for validation, the sixth for test.
"""

FIRST_NAMES = """Mara Otto Lena Ivo Nadia Tomas Carla Felix Irene Hugo Paula Victor Alma Boris Clara Denis Edith Frank
Greta Henry Ida Jonas Karin Leo Maya Nils Olga Peter Rosa Simon Tara Ulrich Vera Walter Yara Anton Bella Conrad Dora
Emil Flora Gerd Hanna Igor Julia Kurt Linda Milo Nora Oscar Petra Ralf Sonja Theo Ursula Vito Wanda Zeno""".split()

LAST_NAMES = """Brandt Keller Novak Fischer Moreno Lind Castell Berg Okoro Ferris Santos Weaver Holm Ritter Sandoval
Archer Dorn Petrov Marlow Quist Rossi Tanner Underhill Vance Winter Young Zeller Abbott Baker Carver Dyer Fuller
Glover Hooper Miller Potter Sawyer Thatcher""".split()

# Things that the shop of the tickets sells: what runs on electricity, and the rest.
DEVICES = """kettle|toaster|desk lamp|coffee machine|vacuum cleaner|blender|wireless speaker|fan heater
rice cooker|hair dryer|floor lamp|alarm clock|electric razor|sewing machine|hand mixer|air purifier|baby monitor
food processor|ice maker|bread maker|door camera|cordless drill|radio|smart watch|tablet|printer|scanner|keyboard
bike light|thermostat|smoke alarm|projector|water pump|robot mower|phone|laptop""".replace("\n", "|").split("|")

GOODS = """water filter|garden hose|office chair|standing desk|bookshelf|mattress|rain jacket|pair of boots|tent|backpack
camp stove|bike helmet|tool box|ladder|pressure cooker|teapot|blanket|picnic basket""".replace("\n", "|").split("|")

COLOURS = "black white grey red blue green yellow silver brown orange".split()

WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

MONTHS = "January February March April May June July August September October November December".split()

NUMBER_WORDS = "two three four five six seven eight nine ten twelve".split()

# Where the reports of the notes come from: a name and a kind of place.
PLACE_NAMES = """Harbour|Mill Lane|North Gate|Oakfield|Riverside|Castle Hill|Eastbrook|Old Town|Station Road|Lakeview
Stonebridge|Maple Street|West Dock|Fairmont|Greenway|Hillcrest|Kingsley|Marsh End|Pine Ridge|Quarry Bank
Rosewood|South Quay|Tower Street|Upper Field|Valley Farm|Windmill|Ashdown|Birchwood|Cedar Park|Dunmore
Elm Court|Foxhill|Glen Abbey|Holloway|Ivy Bridge|Juniper Square""".replace("\n", "|").split("|")

PLACE_KINDS = """pump house|bakery|school|library|depot|greenhouse|workshop|hotel|clinic|warehouse|laundry|museum
town hall|swimming pool|dairy|print shop|power station|sports hall""".replace("\n", "|").split("|")

TIMES_AGO = ["yesterday", "last {weekday}", "on {weekday}", "this morning", "last week", "{number} days ago",
             "a week ago", "two weeks ago", "on {day} {month}", "earlier this month", "the other day"]

LEXICON = {
    "first_name": FIRST_NAMES,
    "last_name": LAST_NAMES,
    "product": DEVICES + GOODS,
    "colour": COLOURS,
    "weekday": WEEKDAYS,
    "month": MONTHS,
    "number": NUMBER_WORDS,
    "day": [str(day) for day in range(1, 29)],
    "ago": TIMES_AGO,
    "place_name": PLACE_NAMES,
    "place_kind": PLACE_KINDS,
    "digit": [str(digit) for digit in range(10)],
    "euros": [f"{n} euros" for n in (9, 12, 15, 19, 24, 29, 35, 39, 45, 49, 59, 64, 79, 85, 99, 120, 149, 180)],
    "order": ["order {digit}{digit}{digit}{digit}", "order number {digit}{digit}{digit}{digit}{digit}"],
}
