// One key instead of a click: whatever has the pressed key among its data-keys is clicked, once a page.
"use strict";
let pressed = false;
document.addEventListener("keydown", (event) => {
  if (pressed || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const target = [...document.querySelectorAll("[data-keys]")].find((one) => one.dataset.keys.split(" ").includes(event.key));
  if (target) {
    pressed = true;
    event.preventDefault();
    target.click();
  }
});
