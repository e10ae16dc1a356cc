"""Gold answers as models usually write them, and answers that come near and are wrong.

Made from the form of the gold answer alone: a form that is not known here gets the variants that any answer has.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

_NUMBER = r"-?(?:\d+(?:\.\d+)?|\.\d+)"
_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
_PAIR = re.compile(r"(?:\\left)?\s*([(\[])(.*?)(?:\\right)?\s*([)\]])", re.DOTALL)


def variants(gold: str) -> Iterator[str]:
    """Answers that are `gold`, written otherwise."""
    yield gold
    yield f" {gold} "
    yield f"${gold}$" if not gold.startswith(r"\$") else gold
    if "=" not in gold and r"\in" not in gold and r"\text{" not in gold:
        yield rf"\boxed{{{gold}}}"
        yield rf"\mathbf{{{gold}}}"
    if r"\frac" in gold:
        yield gold.replace(r"\frac", r"\dfrac")
    yield from (right for right, _ in _pairs(gold) if right)


def near_misses(gold: str) -> Iterator[str]:
    """Answers that are not `gold`."""
    yield from (wrong for _, wrong in _pairs(gold) if wrong)


def _pairs(gold: str) -> Iterator[tuple[str, str]]:
    """Variants with near misses beside them; either may be empty."""
    plain = gold.replace(r"\!", "").replace(" ", "").removeprefix(r"\$")
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain) if re.fullmatch(r"[\d,]+", plain) else plain
    fraction = _FRACTION.fullmatch(plain)
    degrees = re.fullmatch(rf"({_NUMBER})\^\\circ", plain)
    unit = re.fullmatch(rf"({_NUMBER})\\(?:text|mbox)\{{(\w+)\}}(\^2)?", plain)
    based = re.fullmatch(r"(\d+)_\{?(\d+)\}?", plain)
    text = re.fullmatch(r"\\text\{\(?(\w+)\)?\}", plain)
    pair = _PAIR.fullmatch(gold)
    if re.fullmatch(_NUMBER, plain):
        yield from _number(plain)
    elif fraction:
        sign, *digits = fraction.groups()
        a, b = (int(d) for d in digits if d)
        yield from _fraction(sign, a, b)
    elif degrees:
        yield degrees[1], str(float(degrees[1]) + 1)
        yield rf"{degrees[1]}^{{\circ}}", rf"{degrees[1]}5^\circ"
        yield rf"{degrees[1]}\text{{ degrees}}", rf"-{degrees[1]}^\circ"
    elif unit:
        yield unit[1], f"{unit[1]}1"
        yield rf"{unit[1]} \text{{ {unit[2]}}}{unit[3] or ''}", rf"{float(unit[1]) + 1}\text{{ {unit[2]}}}"
        yield f"{unit[1]} {unit[2]}", f"-{unit[1]}"
    elif based:
        yield f"{based[1]}_{{{based[2]}}}", f"{based[1]}_{{{int(based[2]) + 1}}}"
        yield f"{based[1]}_{based[2]}", f"{int(based[1]) + 1}_{{{based[2]}}}"
    elif text:
        other = {"C": "B", "B": "E", "E": "C"}.get(text[1], "odd" if text[1] == "even" else "nobody")
        yield text[1], other
        yield rf"\text{{{text[1]}}}", rf"\text{{{other}}}"
        if len(text[1]) == 1:
            yield f"({text[1]})", f"({other})"
            yield rf"\textbf{{({text[1]})}}", rf"\textbf{{({other})}}"
    elif pair and not re.search(r"[)\]]", pair[2]):
        yield from _tuple(*pair.groups())
    elif "pmatrix" in gold:
        yield gold.replace("pmatrix", "bmatrix"), re.sub(r"\d+", lambda m: str(int(m[0]) + 1), gold, count=1)
        yield (
            gold.replace(r"\\", " \\\\\n "),
            re.sub(r"(?<=\s)(?=[1-9])", "-", gold, count=1) if re.search(r"\s[1-9]", gold) else "",
        )
    elif re.fullmatch(r"[^][{}()]*,[^][{}()]*", gold):
        elements = [element.strip() for element in gold.split(",")]
        yield ", ".join(reversed(elements)), ", ".join(elements[:-1])
        yield rf"\{{{', '.join(elements)}\}}", ", ".join([*elements, "99"])
    elif re.fullmatch(r"[a-z]=.*", plain):
        left, _, right = gold.partition("=")
        yield right, f"{left}={right} + 1"
        yield f"{right} = {left}", f"{left}=-({right})"
    elif re.search(r"\\pm|\\cup|\\in\b|=|\\\{", gold):
        yield gold.replace(" ", ""), re.sub(r"\d+(?!.*\d)", lambda m: str(int(m[0]) + 1), gold, count=1)
    else:
        yield from _expression(gold)


def _number(plain: str) -> Iterator[tuple[str, str]]:
    value = Fraction(plain)
    integer = value.denominator == 1
    yield (
        (f"{plain}.0" if integer and "." not in plain else f"{plain}0" if "." in plain else plain),
        f"-{plain}".replace("--", ""),
    )
    yield f"x = {plain}", f"x = {plain}1"
    yield rf"{plain}\text{{ apples}}", f"{plain}, {plain}1"
    yield rf"\text{{{plain}}}", rf"{plain} \text{{ or }} {plain}1"
    yield f"{plain}." if integer else plain, rf"\frac{{{plain}}}{{2}}"
    doubled = rf"\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}"
    # A division that is still to be done is no whole number.
    yield "" if integer else doubled, doubled if integer else str(value + 1)
    if integer:
        yield rf"{plain} \text{{ cm}}^2", f"{value * 10}"
        yield f"{plain} dollars", f"{value - 1}"
        yield rf"\${plain}", f"{plain}.5"
        # No rational number is the root of itself and 3 (2 would be that of itself and 2).
        yield rf"\textbf{{{plain}}}", rf"\sqrt{{{abs(value) + 3}}}"
    if integer and abs(value) >= 1000:
        commas = f"{int(value):,}"
        yield commas, commas[:-1] + str((int(commas[-1]) + 1) % 10)
        yield commas.replace(",", "{,}"), commas.replace(",", ".")
        yield commas.replace(",", r",\!"), f"{commas},000"
    if not integer and plain.startswith(("0.", ".")):
        yield f".{plain.partition('.')[2]}", f"{plain}1"
        yield f"0.{plain.partition('.')[2]}", f"1.{plain.partition('.')[2]}"
    if value in (Fraction(15, 100), Fraction(5, 4)):
        yield rf"{value * 100}\%", rf"{value * 1000}\%"


def _fraction(sign: str, a: int, b: int) -> Iterator[tuple[str, str]]:
    value = Fraction(a, b)
    yield f"{sign}{a}/{b}", f"{sign}{b}/{a}"
    yield rf"{sign}\tfrac{{{a}}}{{{b}}}", rf"{sign}\frac{{{a + 1}}}{{{b}}}"
    yield rf"{sign}\frac{{{2 * a}}}{{{2 * b}}}", rf"{sign}\frac{{{a}}}{{{b + 1}}}"
    yield rf"x = {sign}\frac{{{a}}}{{{b}}}", rf"{'' if sign else '-'}\frac{{{a}}}{{{b}}}"
    yield rf"\left({sign}\frac{{{a}}}{{{b}}}\right)", rf"{sign}\frac{{{a}}}{{{b}}} + 1"
    if sign:
        yield rf"\frac{{-{a}}}{{{b}}}", rf"\frac{{-{a}}}{{-{b}}}"
    if a > b:
        whole, rest = divmod(a, b)
        yield rf"{sign}{whole}\frac{{{rest}}}{{{b}}}", rf"{sign}{whole + 1}\frac{{{rest}}}{{{b}}}"
        yield rf"{sign}{whole} \frac{{{rest}}}{{{b}}}", rf"{sign}{whole} \cdot \frac{{{rest}}}{{{b}}}"
    decimal = f"{float(value):.6f}".rstrip("0")
    if Fraction(decimal) == value and not decimal.endswith("."):
        yield sign + decimal, f"{sign}{decimal}1"
    else:
        yield "", f"{sign}{float(value):.2f}"


def _tuple(left: str, inside: str, right: str) -> Iterator[tuple[str, str]]:
    parts = [part.strip() for part in inside.split(",")]
    swapped = {"(": "[", "[": "(", ")": "]", "]": ")"}
    yield (
        f"{left}{','.join(parts)}{right}",
        f"{left}{', '.join(['9' + parts[0], *parts[1:]])}{right}" * ("infty" not in parts[0]),
    )
    yield (
        rf"\left{left}{', '.join(parts)}\right{right}",
        f"{left}{', '.join([*parts[:-1], parts[-1] + '+1'])}{right}" * ("infty" not in parts[-1]),
    )
    if len(parts) == 2:
        # An infinite end is open, however it is written.
        yield (
            f"{left} {parts[0]} , {parts[1]} {right}",
            f"{swapped[left]}{', '.join(parts)}{right}" * ("infty" not in parts[0]),
        )
        yield "", f"{left}{', '.join(parts)}{swapped[right]}" * ("infty" not in parts[1])
        if "infty" not in inside and left == "(" and right == ")":
            yield "", f"({parts[1]}, {parts[0]})"
    else:
        yield "", f"({', '.join(parts[:-1])})"


def _expression(gold: str) -> Iterator[tuple[str, str]]:
    yield gold.replace(" ", "") if "\\" not in gold else gold.replace(" ", "  "), f"{gold} + 1"
    yield rf"\left({gold}\right)", f"-({gold})"
    yield "", f"2({gold})"
    terms = re.fullmatch(r"([^-+(){}]+) ?([-+]) ?([^-+(){}]+)", gold)
    if terms:
        a, sign, b = (term.strip() for term in terms.groups())
        yield f"{sign.replace('+', '')}{b} + {a}", f"{a} {'-' if sign == '+' else '+'} {b}"
