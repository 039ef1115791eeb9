// Says so when the service cannot be reached: all else on the page is rendered there.
"use strict";

document.addEventListener("htmx:sendError", (event) => {
  const target = event.detail.target;
  if (target.id === "live") {
    target.classList.add("stale");
  } else {
    target.replaceChildren(document.getElementById("unreachable").content.cloneNode(true));
  }
});

document.addEventListener("htmx:afterSwap", (event) => event.detail.target.classList.remove("stale"));
