"""Tables that are wider than a phone."""

from typing import Any

from fcs_utils.report.pages import HERE
from tests.report.browsing import needs_chromium


@needs_chromium
def test_short_cells_stay_on_one_line_and_long_ones_have_room_on_a_phone(browser: Any) -> None:
    words = ("VGG-16 x0.25", "channels with a near-duplicate beyond chance, trained minus untrained", "+44.52 to +70.72", "0.004")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    row = "".join(f"<td>{cell}</td>" for cell in words)
    table = f"<table><tr>{'<th>claim</th>' * 4}</tr><tr>{row}</tr></table>"
    page.set_content(f"<style>{(HERE / 'style.css').read_text()}</style><main>{table}</main>")
    page.evaluate((HERE / "page.js").read_text())
    one = page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).lineHeight)")
    lines = [round((cell["height"] - 11) / one) for cell in (cell.bounding_box() for cell in page.locator("td").all())]
    texts = page.evaluate("""() => [...document.querySelectorAll('td')].map(cell => {
        const range = document.createRange(); range.selectNodeContents(cell); return range.getClientRects().length })""")
    assert [texts[n] for n in (0, 2, 3)] == [1, 1, 1] and 1 < texts[1] <= 4 and max(lines) <= 4
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@needs_chromium
def test_the_column_that_tells_rows_apart_stays_in_view_on_a_phone(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    heads = "".join(f"<th>{head}</th>" for head in ("network", "criterion", *["accuracy after fine-tuning"] * 6))
    rows = [("VGG-16", "random channels", *["87.3"] * 6), ("VGG-16", "kernel L1 norm", *["87.9"] * 6)]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    page.set_content(f"<style>{(HERE / 'style.css').read_text()}</style><main><table><tr>{heads}</tr>{body}</table></main>")
    page.evaluate((HERE / "page.js").read_text())
    assert page.locator(".pinned").all_text_contents() == ["criterion", "random channels", "kernel L1 norm"]
    page.evaluate("document.querySelector('table').scrollLeft = 1e6")
    network, criterion, first = (cell.bounding_box() for cell in page.locator("td").all()[:3])
    assert network["x"] < 0 and first["x"] < 0 <= criterion["x"] < 30 and criterion["width"] < 390 / 2
    page.close()
