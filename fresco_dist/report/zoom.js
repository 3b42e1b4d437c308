// Zoom and pan, shared by all `videos` of a page: a scale, and the top left corner in parts of the view.
const zoom = { scale: 1, x: 0, y: 0 };

function applyZoom() {
  const most = 1 - 1 / zoom.scale;
  zoom.x = Math.min(Math.max(0, zoom.x), most);
  zoom.y = Math.min(Math.max(0, zoom.y), most);
  const move = `translate(${-100 * zoom.x * zoom.scale}%, ${-100 * zoom.y * zoom.scale}%)`;
  videos.forEach((video) => { video.style.transform = `${move} scale(${zoom.scale})`; });
  document.body.classList.toggle("zoomed", zoom.scale > 3);
}

function resetZoom() {
  Object.assign(zoom, { scale: 1, x: 0, y: 0 });
  applyZoom();
}

function addZoom(view) {
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = view.getBoundingClientRect();
    const [px, py] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const scale = Math.min(32, Math.max(1, zoom.scale * Math.exp(-event.deltaY / 400)));
    zoom.x += px / zoom.scale - px / scale; // what is under the pointer stays there
    zoom.y += py / zoom.scale - py / scale;
    zoom.scale = scale;
    applyZoom();
  }, { passive: false });
  view.addEventListener("pointerdown", (event) => view.setPointerCapture(event.pointerId));
  view.addEventListener("pointermove", (event) => {
    if (!view.hasPointerCapture(event.pointerId)) return;
    zoom.x -= event.movementX / view.clientWidth / zoom.scale;
    zoom.y -= event.movementY / view.clientHeight / zoom.scale;
    applyZoom();
  });
}
