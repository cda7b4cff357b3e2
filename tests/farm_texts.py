"""500 texts about farms as people write them: plain captions, and everything on which tokenizers tend to differ."""

from agriclip_jax.data import knowledge

BY_HAND = (
    "a photo of a coffee leaf with rust",
    "A PHOTO OF A HOLSTEIN COW",
    "Zea mays L. (maize) with Exserohilum turcicum",
    "Phytophthora infestans (Mont.) de Bary on Solanum lycopersicum cv. 'Roma'",
    "(Bos taurus) x Bos indicus, F1",
    "Oryza sativa subsp. japonica × indica, BBCH 65",
    "Hemileia vastatrix Berk. & Broome, 1869",
    "Oreochromis niloticus; Clarias gariepinus; Penaeus vannamei",
    "leaf temperature 23.5 °C at 65 % RH",
    "soil pH 5.5–6.0, −4°C at night, 38℃ at noon",
    "½ of the leaf, ¼ of the fruit and ⅔ of the field",
    "yield: 7.25 t/ha on 1,234.50 ha",
    "10 m² of plots, 30 cm³ of soil, 5 µm spores, 2 × 10⁻³ mol",
    "N:P:K = 15-15-15 @ 200 kg·ha⁻¹",
    "salt &amp; pepper, &lt;b&gt;bold&lt;/b&gt; &quot;leaf&quot;",
    "&eacute;t&eacute; &amp;amp; &#127807; &#x1F404; &nbsp; caf&eacute;",
    "schÃ¶n, doesnâ€™t matter, cafÃ©",
    "Müller's Äpfel, niño, Ünlü, ßtraße, œuf, ﬁsh, ﬂower",
    "Feuilles abîmées de café — à l'été",
    "cafe\u0301 and e\u0301te\u0301, a\u0300 la ferme",
    "piña, jalapeño, açaí, pão, brócolis, maçã",
    "Ærø, Łódź, Žďár, Győr, İzmir, Ağrı, Đắk Lắk",
    "🌿🐄 leaf 👩🏽‍🌾 with 🍅!!!",
    "🐟🦐🐖🐑🐔",
    "❤️ tomatoes ✅ ☀️ 25℃",
    "稲のいもち病",
    "水稻稻瘟病 叶片",
    "картофель, фитофтороз",
    "감자 역병",
    "البطاطس المصابة",
    "आलू का झुलसा रोग",
    "मक्का และ ข้าว",
    "full-width ＲＩＣＥ ｌｅａｆ １２３ 、。「病」",
    "“curly” ‘quotes’ don’t… leaf–rust—blight",
    "don't we'll they're I'd it's farmer's cows'",
    "DON'T WE'LL THEY'RE I'D IT'S FARMER'S",
    "rust/blight\\smut|mildew_leaf-spot~scab",
    "email farm@example.org, see https://example.org/leaf?id=3&x=y#top",
    '#rust #blight @farmer $5 50% ^_^ <3 {leaf} [0] `code` "quoted"',
    "img_2031_leaf_rust.JPG",
    "__healthy__ **diseased**",
    "...",
    "!",
    "-",
    "_",
    "",
    " ",
    "\t\n",
    "  leading and trailing spaces  ",
    "a\tb\nc\r\nd\u00a0e\u2003f\u3000g",
    "zero\u200bwidth\u200djoin\ufeffmark soft\u00adhyphen",
    "line\u2028separator and \x1funit\x1c separators \x85",
    "▁ a block ▁▁ that sentencepiece uses",
    "a leaf </w> of rust",
    "x" * 300,
    "leaf " * 100,
    "the leaf of a coffee plant with orange powdery rust pustules on its underside, " * 8,
    "éà" * 60,
    "1234567890" * 12,
    "v.1.2.3-beta+4 (2024-05-06T07:08:09Z)",
    "Ω ohm, K kelvin, Å ångström, ſharp s, Ⅷ roman, ㎏ square",
    "ǅ ǈ ŉ ŀ ĳ ʼn",
    "a.b.c, d;e:f!g?h",
    "CO2 H2O NH4+ NO3− K2O5",
    "cow#12 pen-3B tag: NL 1234 5678 9",
    '5\'10" tall, 3" x 4" leaf',
    "the 1st, 2nd, 3rd and 4th instar",
    "A/B test; w/o fungicide; c/w control",
    "rice   blast    (  Magnaporthe   oryzae  )",
    "aphids(Aphididae)on the leaf,undersides",
    "¿Qué plaga es? ¡Roya!",
    "§ 3 © 2024 ® ™ № 5 € 3.50 £2 ¥100 ₹50",
    "left ← right → up ↑ ≤ 5 ≥ 3 ≠ ± √ ∞ ≈",
    "straight\u0000null and \ufffd replacement",
)
_SAID = (
    "a photo of {}",
    "A close-up of {}, showing {sign}.",
    "{}: {signs}",
    "{NAME} ({sign})",
    "there's {} here & it's spreading at 28 °C",
)


def _of_facts(count: int) -> list[str]:
    facts = list({fact.name: fact for fact in knowledge.shipped() if fact.signs}.values())
    chosen = [facts[len(facts) * i // count] for i in range(count)]
    return [
        _SAID[i % len(_SAID)].format(fact.name, NAME=fact.name.upper(), sign=fact.signs[0], signs="; ".join(fact.signs))
        for i, fact in enumerate(chosen)
    ]


TEXTS = (*BY_HAND, *_of_facts(500 - len(BY_HAND)))
